"""Attention of rows of one token over the slots of a cache where they lie: flash-decoding, split along the entries.

Semantics, of row b, head h and its key head k = h // (heads // K):
    seen = [t for t in range(entries[b] + 1) if window is None or t > entries[b] - window]
    scores = [cap(q[h, b] @ keys[slots[b], k, t] * scaling) for t in seen]
    out[b, h] = sum(softmax(scores) * values[slots[b], k, seen])
where cap(s) is softcap * tanh(s / softcap), or s itself. Sums are in fp32. A learned prefix is a slot's first entries,
so there is nothing here that knows one. The query heads of a group are the rows of one product, which reads keys and
values once for all of them.

Each program takes SPAN entries of one row and one key head, and keeps a maximum, a sum and a weighted sum; a second
kernel joins them (Dao et al. 2023, "Flash-Decoding for long-context inference"). How many programs there are follows
from the reach that is asked for and not from the rows, so that a captured step reads their lengths anew; programs past
a row's end leave at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_exact import dot, rounded

SPAN = 256  # entries of one program
BLOCK = 64  # of which it reads so many at once
LEAST = 16  # a matrix unit takes no fewer query heads


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    entries: Tensor,
    *,
    reach: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[B, heads, D] of q [heads, B, D] over one layer's keys and values [S, K, T, D]. Without gradients.

    Args:
        q: each row's one token, rotated.
        keys: each slot's, the row's own among them already.
        values: as keys.
        slots: [B] int64.
        entries: [B] int64: the last entry that each row sees, its own.
        reach: above every one of entries, and at most T.
        scaling: of scores.
        window: how many entries a row sees at most, its own among them; None for all.
        softcap: scores are squeezed into (-softcap, softcap); None for as they are.

    """
    heads, b, width = q.shape
    groups = keys.shape[1]
    assert q.stride(2) == keys.stride(3) == values.stride(3) == 1
    assert keys.stride() == values.stride()
    spans = triton.cdiv(reach, SPAN)
    head_block, lanes = max(LEAST, triton.next_power_of_2(heads // groups)), triton.next_power_of_2(width)
    out = torch.empty(b, heads, width, dtype=q.dtype, device=q.device)
    part = torch.empty(b, heads, spans, width, dtype=torch.float32, device=q.device)
    level = torch.empty(2, b, heads, spans, dtype=torch.float32, device=q.device)  # maximum and sum
    shape = {"HEADS": heads, "GROUP": heads // groups, "D": width, "LANES": lanes, "SPAN": SPAN}
    _attend_span[b, groups, spans](
        q, keys, values, slots, entries, part, level, level[1], q.stride(0), q.stride(1), *keys.stride()[:3],
        scaling, spans, **shape, HEAD_BLOCK=head_block, BLOCK=BLOCK, WINDOW=window or 0, SOFTCAP=softcap or 0.0,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    _join[b, heads](out, entries, part, level, level[1], spans, HEADS=heads, D=width, LANES=lanes, SPAN=SPAN,
                    WINDOW=window or 0)  # fmt: skip
    return out


@triton.jit
def _attend_span(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    q, keys, values, slots, entries, part, peaks, sums, q_head, q_row, slot_stride, head_stride, entry_stride,  # noqa: ANN001
    scaling, spans,  # noqa: ANN001
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one row, one key head and one span: part [GROUP, D], not yet divided, its maxima and sums [GROUP]."""
    row, group, span = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(entries + row).to(tl.int32)
    low = tl.maximum(last - WINDOW + 1, 0) if WINDOW > 0 else 0
    first, stop = tl.maximum(span * SPAN, low), tl.minimum((span + 1) * SPAN, last + 1)
    if first < stop:
        head, lane = tl.arange(0, HEAD_BLOCK), tl.arange(0, LANES)
        is_head, is_lane = head < GROUP, lane < D
        own = q + (group * GROUP + head)[:, None] * q_head + row * q_row + lane[None, :]
        query = tl.load(own, mask=is_head[:, None] & is_lane[None, :], other=0.0)
        here = tl.load(slots + row) * slot_stride + group * head_stride
        peak = tl.full((HEAD_BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((HEAD_BLOCK,), tl.float32)
        out = tl.zeros((HEAD_BLOCK, LANES), tl.float32)
        for begin in range(first // BLOCK * BLOCK, stop, BLOCK):
            entry = begin + tl.arange(0, BLOCK)
            is_seen = (entry >= first) & (entry < stop)
            where = here + entry[:, None] * entry_stride + lane[None, :]
            is_read = is_seen[:, None] & is_lane[None, :]
            key = tl.load(keys + where, mask=is_read, other=0.0)
            value = tl.load(values + where, mask=is_read, other=0.0)
            score = dot(query, tl.trans(key), tl.zeros((HEAD_BLOCK, BLOCK), tl.float32), PRECISION) * scaling
            if SOFTCAP > 0:
                # tanh by exp, of a negative number only, so that it cannot overflow.
                away = tl.exp(-2 * tl.abs(score) / SOFTCAP)
                score = tl.where(score < 0, -1.0, 1.0) * SOFTCAP * (1 - away) / (1 + away)
            score = tl.where(is_seen[None, :], score, float("-inf"))
            higher = tl.maximum(peak, tl.max(score, 1))
            fade, weight = tl.exp(peak - higher), tl.exp(score - higher[:, None])
            total = total * fade + tl.sum(weight, 1)
            out = dot(weight, value.to(tl.float32), out * fade[:, None], PRECISION)
            peak = higher
        mine = (row * HEADS + group * GROUP + head) * spans + span
        tl.store(peaks + mine, peak, mask=is_head)
        tl.store(sums + mine, total, mask=is_head)
        tl.store(part + mine.to(tl.int64)[:, None] * D + lane[None, :], out, mask=is_head[:, None] & is_lane[None, :])


@triton.jit
def _join(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    out, entries, part, peaks, sums, spans,  # noqa: ANN001
    HEADS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Of one row and head: out [D] from all spans that saw an entry, in order."""
    row, head = tl.program_id(0), tl.program_id(1)
    last = tl.load(entries + row).to(tl.int32)
    low = tl.maximum(last - WINDOW + 1, 0) if WINDOW > 0 else 0
    lane = tl.arange(0, LANES)
    is_lane = lane < D
    first = (row * HEADS + head) * spans
    span = low // SPAN
    peak = tl.load(peaks + first + span)
    total = tl.load(sums + first + span)
    found = tl.load(part + (first + span).to(tl.int64) * D + lane, mask=is_lane, other=0.0)
    for other in range(span + 1, last // SPAN + 1):
        theirs = tl.load(peaks + first + other)
        higher = tl.maximum(peak, theirs)
        mine, fade = tl.exp(peak - higher), tl.exp(theirs - higher)
        total = total * mine + tl.load(sums + first + other) * fade
        more = tl.load(part + (first + other).to(tl.int64) * D + lane, mask=is_lane, other=0.0)
        found, peak = found * mine + more * fade, higher
    answer = rounded(found / total, out.dtype.element_ty)
    tl.store(out + (row * HEADS + head).to(tl.int64) * D + lane, answer, mask=is_lane)
