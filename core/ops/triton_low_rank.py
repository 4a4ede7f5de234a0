"""Low-rank parts of many adapters of any ranks, in two kernels: down to each token's own ranks, and up again.

Semantics, of every block of core/ops/segments.py:
    for n in tokens[m]:
        for r in the rows of pages[m, :counts[m]]:
            y[n] += (x[n] @ a[r]) * b[r]
summed in fp32 and rounded once. So each token pays for the rank of its own adapter, one of the bare base for nothing,
and y of a token that wears nothing keeps its bits.

Layers that read the same x (queries, keys and values; gate and up) are members of one group: a holds their rows page
by page beside one another, b their columns, and both kernels are launched once for all.

The idea of cutting tokens into segments of one adapter is Punica's (Chen et al. 2023, arXiv:2310.18547); that each
segment goes to its own rank and no further, SGLang's. A long input is split among programs, and their sums are added in
order: no atomic additions, so a step says the same each time it runs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.segments import PAGE, Group, Segments
from core.ops.triton_exact import dot, rounded

RANKS = 16  # rows of the pool that a program reads at once
INPUTS = 128  # columns of x and a that it reads at once
OUTPUTS = 128  # columns of y that a program writes
SPLITS = 4  # programs among which a long input is split, where blocks are few
FEW_BLOCKS = 64
LONG_INPUT = 1024


def add_segments(y: Tensor, x: Tensor, group: Group, blocks: Segments) -> Tensor:
    """The low-rank parts of x [N, I], added to y [N, O], which is returned. Without gradients."""
    assert y.stride(1) == x.stride(1) == 1
    assert group.a.is_contiguous()
    m, width, reach = blocks.size
    members = group.a.shape[1]
    tiles = triton.cdiv(reach * PAGE, RANKS)
    splits = SPLITS if m * tiles <= FEW_BLOCKS and x.shape[1] >= LONG_INPUT else 1
    thin = torch.empty(splits, members, m, width, tiles * RANKS, dtype=torch.float32, device=x.device)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    told = (blocks.tokens, blocks.pages, blocks.counts)
    shape = {"C": width, "W": reach, "R": tiles * RANKS, "G": members, "PAGE": PAGE, "RANKS": RANKS, "SPLITS": splits}
    _down[m, tiles, members * splits](
        x, group.a, thin, *told, m, x.shape[1], x.stride(0), **shape,
        INPUTS=INPUTS, PRECISION=precision,
    )  # fmt: skip
    _up[m, triton.cdiv(group.widest, OUTPUTS), members](
        y, thin, group.b, group.bounds, *told, m, y.stride(0), group.b.stride(0), **shape,
        OUTPUTS=OUTPUTS, PRECISION=precision,
    )  # fmt: skip
    return y


@triton.jit
def _down(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    x, a, thin, tokens, pages, counts, n_blocks, n_inputs, x_stride,  # noqa: ANN001
    C: tl.constexpr, W: tl.constexpr, R: tl.constexpr, G: tl.constexpr, PAGE: tl.constexpr, RANKS: tl.constexpr,
    SPLITS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Thin [SPLITS, G, M, C, R] of x and a: one block, RANKS of its ranks, one member, a share of the inputs."""
    block, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    member, split = part // SPLITS, part % SPLITS
    count = tl.load(counts + block) * PAGE
    if tile * RANKS < count:
        rank = tile * RANKS + tl.arange(0, RANKS)
        is_own = rank < count
        page = tl.load(pages + block * W + rank // PAGE, mask=is_own, other=0)
        row = ((page * G + member) * PAGE + rank % PAGE).to(tl.int64) * n_inputs
        place = tl.arange(0, C)
        token = tl.load(tokens + block * C + place)
        is_token = token >= 0
        total = tl.zeros((C, RANKS), tl.float32)
        for first in range(split * INPUTS, n_inputs, SPLITS * INPUTS):
            column = first + tl.arange(0, INPUTS)
            is_in = column < n_inputs
            xs = tl.load(
                x + token.to(tl.int64)[:, None] * x_stride + column[None, :],
                mask=is_token[:, None] & is_in[None, :], other=0.0,
            )  # fmt: skip
            rows = tl.load(a + row[:, None] + column[None, :], mask=is_own[:, None] & is_in[None, :], other=0.0)
            if C == 1:
                total += tl.sum(xs.to(tl.float32) * rows.to(tl.float32), axis=1)[None, :]
            else:
                total = dot(xs, tl.trans(rows), total, PRECISION)
        where = (((split * G + member) * n_blocks + block) * C + place).to(tl.int64) * R
        tl.store(thin + where[:, None] + rank[None, :], total)


@triton.jit
def _up(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    y, thin, b, bounds, tokens, pages, counts, n_blocks, y_stride, b_stride,  # noqa: ANN001
    C: tl.constexpr, W: tl.constexpr, R: tl.constexpr, G: tl.constexpr, PAGE: tl.constexpr, RANKS: tl.constexpr,
    SPLITS: tl.constexpr, OUTPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds thin and b to y: one block, OUTPUTS columns of one member."""
    block, tile, member = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + block) * PAGE
    start, stop = tl.load(bounds + member) + tile * OUTPUTS, tl.load(bounds + G + member)
    if (count > 0) & (start < stop):
        column = start + tl.arange(0, OUTPUTS)
        is_in = column < stop
        place = tl.arange(0, C)
        token = tl.load(tokens + block * C + place)
        total = tl.zeros((C, OUTPUTS), tl.float32)
        for first in range(0, count, RANKS):
            rank = first + tl.arange(0, RANKS)
            is_own = rank < count
            page = tl.load(pages + block * W + rank // PAGE, mask=is_own, other=0)
            row = (page * PAGE + rank % PAGE).to(tl.int64) * b_stride
            rows = tl.load(b + row[:, None] + column[None, :], mask=is_own[:, None] & is_in[None, :], other=0.0)
            own = tl.zeros((C, RANKS), tl.float32)
            for split in tl.static_range(SPLITS):
                where = (((split * G + member) * n_blocks + block) * C + place).to(tl.int64) * R
                own += tl.load(thin + where[:, None] + rank[None, :], mask=is_own[None, :], other=0.0)
            if C == 1:
                total += tl.sum(tl.trans(own) * rows.to(tl.float32), axis=0)[None, :]
            else:
                total = dot(own, rows.to(tl.float32), total, PRECISION)
        where = y + token.to(tl.int64)[:, None] * y_stride + column[None, :]
        is_y = (token >= 0)[:, None] & is_in[None, :]
        here = tl.load(where, mask=is_y, other=0.0)
        tl.store(where, rounded(here.to(tl.float32) + total, y.dtype.element_ty), mask=is_y)
