"""A product with a weight in NF4, for few tokens: the weight is read in 4 bits and never exists in more.

Semantics: x @ core.ops.nf4.dequantise(weight).to(x.dtype).T, summed in fp32 and rounded once. Every entry is rounded
to the type of x before it multiplies, as it is where the whole weight is dequantised first (core/base/nf4.py): so a row
is served with the very numbers that it was trained with. A quarter of the bytes are read, and none written.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.nf4 import BLOCK, GROUP
from core.ops.triton_exact import dot, rounded

OUTPUTS = 32  # columns of y that a program writes
INPUTS = 128  # columns of x that it reads at once


class Weight(NamedTuple):
    """Of core.base.nf4.Linear4bit, row-major: O rows of I entries."""

    packed: Tensor  # [O I / 2] uint8 or so many in another shape: the first code of two in the high half
    scales: Tensor  # [C] uint8, C = ceil(O I / BLOCK)
    peaks: Tensor  # [ceil(C / GROUP)] fp32
    offset: Tensor  # [] fp32
    levels: Tensor  # [16] fp32
    scale_map: Tensor  # [256] fp32


def product(x: Tensor, weight: Weight, bias: Tensor | None, outputs: int) -> Tensor:
    """X Wᵀ + bias of x [n, I]: [n, O]. Without gradients."""
    assert x.stride(1) == 1
    n, inputs = x.shape
    y = torch.empty(n, outputs, dtype=x.dtype, device=x.device)
    tokens = max(16, triton.next_power_of_2(n))
    _product[(triton.cdiv(outputs, OUTPUTS),)](
        x, *weight, bias if bias is not None else y, y, n, inputs, outputs, x.stride(0),
        TOKENS=tokens, OUTPUTS=OUTPUTS, INPUTS=INPUTS, BLOCK=BLOCK, GROUP=GROUP, HAS_BIAS=bias is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    return y


@triton.jit
def _product(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    x, packed, scales, peaks, offset, levels, scale_map, bias, y, n, n_inputs, n_outputs, x_stride,  # noqa: ANN001
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """OUTPUTS columns of y. Even and odd columns of x are multiplied apart, as high and low halves of a byte are."""
    token, column = tl.arange(0, TOKENS), tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_token, is_out = token < n, column < n_outputs
    mean = tl.load(offset)
    total = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for first in range(0, n_inputs, INPUTS):
        pair = first + 2 * tl.arange(0, INPUTS // 2)
        is_in = pair < n_inputs
        entry = column.to(tl.int64)[:, None] * n_inputs + pair[None, :]  # [OUTPUTS, INPUTS / 2]
        is_read = is_out[:, None] & is_in[None, :]
        codes = tl.load(packed + entry // 2, mask=is_read, other=0)
        block = entry // BLOCK
        scale = tl.load(scale_map + tl.load(scales + block, mask=is_read, other=0).to(tl.int32))
        scale = scale * tl.load(peaks + block // GROUP, mask=is_read, other=0.0) + mean
        high = rounded(tl.load(levels + (codes >> 4).to(tl.int32)) * scale, x.dtype.element_ty)
        low = rounded(tl.load(levels + (codes & 15).to(tl.int32)) * scale, x.dtype.element_ty)
        where = x + token.to(tl.int64)[:, None] * x_stride + pair[None, :]
        is_x = is_token[:, None] & is_in[None, :]
        even, odd = tl.load(where, mask=is_x, other=0.0), tl.load(where + 1, mask=is_x, other=0.0)
        total = dot(even, tl.trans(high), total, PRECISION)
        total = dot(odd, tl.trans(low), total, PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_out, other=0.0).to(tl.float32)[None, :]
    where = y + token.to(tl.int64)[:, None] * n_outputs + column[None, :]
    tl.store(where, rounded(total, y.dtype.element_ty), mask=is_token[:, None] & is_out[None, :])
