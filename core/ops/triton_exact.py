"""A product and a rounding that mean the same on a GPU and in Triton's interpreter, in which the kernels are tested.

The interpreter's dot knows no bf16, and its cast to bf16 cuts the last bits off instead of rounding to the nearest
number. Products of two bf16 numbers are exact in fp32, so there only the order of sums differs from a GPU's.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Total plus a @ b, in fp32. PRECISION: of products of fp32 numbers; those of bf16 ones are exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def rounded(value, dtype: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """An fp32 value in dtype, to the nearest, of two as near to the even one."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)
