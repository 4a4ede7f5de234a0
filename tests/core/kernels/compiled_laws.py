"""Triton's own compiler takes every kernel to machine code for an H100. That needs no GPU."""

import pytest
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core.ops import triton_decode, triton_low_rank, triton_nf4
from core.ops.nf4 import BLOCK, GROUP
from core.ops.segments import PAGE

H100 = GPUTarget("cuda", 90, 32)
KINDS = [("fp32", "ieee"), ("bf16", "tf32")]
TABLES = {"tokens": "*i32", "pages": "*i32", "counts": "*i32", "n_blocks": "i32"}


def machine_code(kernel, told, constants):
    """What the compiler makes of a kernel whose arguments have these types."""
    signature = {name: told.get(name, "constexpr") for name in kernel.arg_names}
    assert all(name in constants for name, kind in signature.items() if kind == "constexpr"), signature
    made = compiled(ASTSource(kernel, signature, constants), target=H100)
    return made.asm["ptx"], made.asm["cubin"]


@pytest.mark.parametrize(("kind", "precision"), KINDS)
@pytest.mark.parametrize(("width", "splits"), [(1, 4), (16, 1)])
def test_the_low_rank_kernels_compile(kind, precision, width, splits):
    shape = {"C": width, "W": 16, "R": 64, "G": 3, "PAGE": PAGE, "RANKS": 16, "SPLITS": splits, "PRECISION": precision}
    down = {"x": f"*{kind}", "a": f"*{kind}", "thin": "*fp32", "n_inputs": "i32", "x_stride": "i32"} | TABLES
    ptx, cubin = machine_code(triton_low_rank._down, down, shape | {"INPUTS": triton_low_rank.INPUTS})
    assert cubin
    assert ("mma" in ptx) == (width == 16 and kind == "bf16")  # exact products of fp32 have no matrix unit
    up = {"y": f"*{kind}", "thin": "*fp32", "b": f"*{kind}", "bounds": "*i32", "y_stride": "i32", "b_stride": "i32"}
    assert machine_code(triton_low_rank._up, up | TABLES, shape | {"OUTPUTS": triton_low_rank.OUTPUTS})[1]


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (512, 30.0)])
def test_the_decoding_kernels_compile(window, softcap):
    kind, precision = KINDS[1]
    strides = ("q_head", "q_row", "slot_stride", "head_stride", "entry_stride", "spans")
    told = {"q": f"*{kind}", "keys": f"*{kind}", "values": f"*{kind}", "slots": "*i64", "entries": "*i64"}
    told |= {"part": "*fp32", "peaks": "*fp32", "sums": "*fp32", "scaling": "fp32"} | dict.fromkeys(strides, "i32")
    shape = {"HEADS": 32, "D": 128, "LANES": 128, "SPAN": triton_decode.SPAN, "WINDOW": window}
    span = shape | {"GROUP": 4, "HEAD_BLOCK": 16, "BLOCK": triton_decode.BLOCK, "SOFTCAP": softcap}
    assert machine_code(triton_decode._attend_span, told, span | {"PRECISION": precision})[1]
    join = {"out": f"*{kind}", "entries": "*i64", "part": "*fp32", "peaks": "*fp32", "sums": "*fp32", "spans": "i32"}
    assert machine_code(triton_decode._join, join, shape)[1]


@pytest.mark.parametrize("tokens", [16, 64])
def test_the_nf4_kernel_compiles(tokens):
    kind, precision = KINDS[1]
    told = {"x": f"*{kind}", "bias": f"*{kind}", "y": f"*{kind}", "packed": "*u8", "scales": "*u8"}
    told |= dict.fromkeys(("peaks", "offset", "levels", "scale_map"), "*fp32")
    told |= dict.fromkeys(("n", "n_inputs", "n_outputs", "x_stride"), "i32")
    shape = {"TOKENS": tokens, "OUTPUTS": triton_nf4.OUTPUTS, "INPUTS": triton_nf4.INPUTS, "BLOCK": BLOCK}
    shape |= {"GROUP": GROUP, "HAS_BIAS": True, "PRECISION": precision}
    assert machine_code(triton_nf4._product, told, shape)[1]


def test_a_kernel_that_is_no_kernel_does_not_compile():
    told = {"x": "*fp32", "a": "*bf16", "thin": "*fp32", "n_inputs": "i32", "x_stride": "i32"} | TABLES
    shape = {"C": 16, "W": 16, "R": 64, "G": 1, "PAGE": 3, "RANKS": 16, "SPLITS": 1, "PRECISION": "ieee", "INPUTS": 100}
    with pytest.raises(Exception, match="power of 2"):
        machine_code(triton_low_rank._down, told, shape)
