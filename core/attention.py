"""Ragged attention: every row to itself, to its prefix and to its past. Knows no adapter but the prefix.

Hugging Face models call `attend_ragged` in place of their own attention, through the public AttentionInterface; the
batch reaches it as a keyword argument of the model call, so nothing is global. It honours what models pass:
sliding_window, softcap, scaling. Windows count a row's entries, its prefix among them.

Three ways, chosen by what was measured (2 cores, bf16, 9 query heads on 3, width 64):
- a row of many tokens, up to SHORT: explicit products. Forward and backward take 1.0/2.7/8.4 ms at 128/256/512 tokens
  against 3.6/9.4/23.8 ms of scaled_dot_product_attention; they meet at 1024.
- longer: scaled_dot_product_attention where it is plainly causal, else explicit products in blocks of queries.
- rows of one token (decode): one call for all, the query heads of a group laid out as queries. That is 4 to 6 times
  as fast as `enable_gqa=True`, which in bf16 took 2.0 ms against 0.3 ms for 8 rows of 256 entries. On a GPU a kernel
  reads them where they lie (core/ops/triton_decode.py).
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from core.cache import KVCache
from core.effects import KVPrefix
from core.ops import choice

NAME = "graft_ragged"
SHORT = 768  # entries up to which explicit products are faster on a CPU
BLOCK = 256  # queries of one block of a long row


@dataclass(eq=False)
class DecodeRows:
    """The rows of one token, answered together. All tensors are made once a step and read by every layer."""

    tokens: Tensor  # [B] where each row stands in the ragged batch
    slots: Tensor  # [B]
    entries: Tensor  # [B] where the new key and value go
    low: int  # the slots low up to high are read as one slice: no copy of the cache
    high: int
    places: Tensor  # [B] slot - low
    reach: int  # entries of the longest row, the new one included
    is_sliced: bool  # False: so few of low..high are in use that copying theirs out is cheaper
    is_whole: bool  # these rows are the whole batch, in its order
    is_dense: bool  # they stand in low..high, in this order and without a gap


@dataclass(eq=False)
class RaggedBatch:
    """What attention must know of the rows of one model call."""

    starts: tuple[int, ...]  # B + 1
    prefixes: tuple[KVPrefix | None, ...] = ()  # B, when there is no cache
    cache: KVCache | None = None
    slots: tuple[int, ...] = ()  # B, with a cache
    firsts: tuple[int, ...] = ()  # B, with a cache: entries each slot held before this call
    is_causal: bool = True
    _decode: DecodeRows | None = None
    _biases: dict[tuple[int, int, int, int, int | None], Tensor] = field(default_factory=dict)
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def rows_of_many(self) -> list[int]:
        """Rows that are not in the decode call."""
        rows = range(len(self.starts) - 1)
        return [r for r in rows if self.cache is None or self.starts[r + 1] - self.starts[r] > 1]

    @classmethod
    def still(cls, cache: KVCache, slots: Tensor, entries: Tensor) -> "RaggedBatch":
        """Of rows of one token each, in these slots and for these entries [B], which are read when they are used.

        Nothing of what is done depends on what these hold: only so can a device repeat it by itself.
        """
        tokens = torch.arange(len(slots), device=slots.device)
        starts, reach = tuple(range(len(slots) + 1)), cache.length
        rows = DecodeRows(tokens, slots, entries, 0, cache.slots, slots, reach, False, True, False)  # noqa: FBT003
        return cls(starts, cache=cache, _decode=rows)

    def decode_rows(self, device: torch.device) -> DecodeRows | None:
        """The rows of one token, or None if there is none or no cache."""
        if self.cache is None:
            return None
        if self._decode is None:
            rows = [r for r in range(len(self.slots)) if self.starts[r + 1] - self.starts[r] == 1]
            if not rows:
                return None
            slots = [self.slots[r] for r in rows]
            low, high = min(slots), max(slots) + 1
            self._decode = DecodeRows(
                tokens=torch.tensor([self.starts[r] for r in rows], device=device),
                slots=torch.tensor(slots, device=device),
                entries=torch.tensor([self.firsts[r] for r in rows], device=device),
                low=low,
                high=high,
                places=torch.tensor([s - low for s in slots], device=device),
                reach=max(self.firsts[r] for r in rows) + 1,
                is_sliced=2 * len(rows) >= high - low,
                is_whole=len(rows) == self.starts[-1],
                is_dense=slots == list(range(low, high)),
            )
        return self._decode

    def decode_mask(self, window: int | None) -> Tensor:
        """[B or high - low, 1, 1, reach] which entries each row may see."""
        if window not in self._masks:
            d = self._decode
            assert d is not None
            last = d.entries
            if d.is_sliced:
                # Idle slots between see entry 0 alone: their answers are thrown away, but must not be NaN.
                last = last.new_zeros(d.high - d.low).index_copy_(0, d.places, d.entries)
            entry = torch.arange(d.reach, device=last.device)
            seen = entry <= last[:, None]
            if window is not None:
                seen &= entry > last[:, None] - window
            self._masks[window] = seen[:, None, None]
        return self._masks[window]

    def bias(self, like: Tensor, *, queries: int, entries: int, first: int, group: int, window: int | None) -> Tensor:
        """[1, group * queries, entries] of 0 and -inf; query i stands at entry first + i. Made once, for all layers."""
        key = (queries, entries, first, group, window)
        if key not in self._biases:
            at = torch.arange(first, first + queries, device=like.device)[:, None]
            entry = torch.arange(entries, device=like.device)
            seen = entry <= at if self.is_causal else torch.ones_like(entry <= at)
            if window is not None:
                seen &= entry > at - window
            bias = like.new_zeros(queries, entries).masked_fill_(~seen, float("-inf"))
            self._biases[key] = bias.repeat(group, 1)[None]
        return self._biases[key]


def attend_ragged(  # noqa: D417, PLR0917 - the library's signature; the class below says what the rest means
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the interface's name; always None here
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    graft_batch: RaggedBatch | None = None,
    **_: Any,  # noqa: ANN401 - whatever else a model family passes its attention
) -> tuple[Tensor, None]:
    """What AttentionInterface calls, once a layer.

    Args:
        module: the layer's attention; its layer_idx says which layer.
        query: [1, heads, N, D].
        key: [1, K, N, D], rotated already.
        value: [1, K, N, D].

    Returns:
        [1, N, heads, D], and no weights.

    """
    if graft_batch is None:
        raise RuntimeError("a base model that Graft opened was called by itself: call its RoutedModel instead")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = _Layer(graft_batch, int(module.layer_idx), scaling, sliding_window, softcap)  # type: ignore[arg-type]
    q, k, v = query[0], key[0], value[0]
    if graft_batch.cache is None:
        # Cut once, not row by row: the gradient of a slice is as long as the whole batch, that of a cut is joined.
        lengths = [stop - start for start, stop in pairwise(graft_batch.starts)]
        cut = zip(*(torch.split(t, lengths, 1) for t in (q, k, v)), strict=True)
        return torch.cat([layer.row_alone(row, *qkv) for row, qkv in enumerate(cut)])[None], None
    return layer.rows_in_cache(q, k, v)[None], None


@dataclass(frozen=True)
class _Layer:
    """One layer's attention over one batch."""

    batch: RaggedBatch
    index: int
    scaling: float
    window: int | None
    softcap: float | None

    def row_alone(self, row: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A whole row without a cache: q [heads, T, D], k and v [K, T, D] to [T, heads, D]."""
        prefix = self.batch.prefixes[row] if self.batch.prefixes else None
        if prefix is None:
            return self.row(q, k, v, first=0)
        # Joined here and now, and not through a cache: when checkpointing runs the layer again, nothing has grown.
        own = (t[self.index].transpose(0, 1).to(k.dtype) for t in (prefix.keys, prefix.values))
        k, v = (torch.cat(pair, 1) for pair in zip(own, (k, v), strict=True))
        return self.row(q, k, v, first=prefix.keys.shape[1])

    def rows_in_cache(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rows whose past is in the cache: q [heads, N, D], k and v [K, N, D] to [N, heads, D]."""
        batch = self.batch
        assert batch.cache is not None
        out = q.new_empty(q.shape[1], q.shape[0], v.shape[2])
        keys, values = batch.cache.keys[self.index], batch.cache.values[self.index]  # [S, K, T, D]
        for r in batch.rows_of_many():
            start, stop, slot, first = batch.starts[r], batch.starts[r + 1], batch.slots[r], batch.firsts[r]
            reach = first + stop - start
            keys[slot, :, first:reach], values[slot, :, first:reach] = k[:, start:stop], v[:, start:stop]
            out[start:stop] = self.row(q[:, start:stop], keys[slot, :, :reach], values[slot, :, :reach], first=first)
        decode = batch.decode_rows(q.device)
        if decode is not None:
            if decode.is_whole:
                return self.decode(q, k, v, keys, values, decode)
            q, k, v = (t[:, decode.tokens] for t in (q, k, v))
            out[decode.tokens] = self.decode(q, k, v, keys, values, decode)
        return out

    def decode(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rows: DecodeRows) -> Tensor:  # noqa: PLR0917
        """One token of each row: q [heads, B, D], k and v [K, B, D], keys and values [S, K, T, D] to [B, heads, D]."""
        keys[rows.slots, :, rows.entries], values[rows.slots, :, rows.entries] = k.transpose(0, 1), v.transpose(0, 1)
        if (kernels := choice.kernels_for(q.device)) is not None:
            how = {"scaling": self.scaling, "window": self.window, "softcap": self.softcap}
            return kernels.attend(q, keys, values, rows.slots, rows.entries, reach=rows.reach, **how)
        heads, groups, width = q.shape[0], keys.shape[1], q.shape[2]
        mine = q.transpose(0, 1).reshape(-1, groups, heads // groups, width)  # [B, K, group, D]
        if rows.is_sliced:
            keys, values = (t[rows.low : rows.high, :, : rows.reach] for t in (keys, values))
            if not rows.is_dense:
                mine = mine.new_zeros(len(keys), *mine.shape[1:]).index_copy_(0, rows.places, mine)
        else:
            keys, values = (t[rows.slots, :, : rows.reach] for t in (keys, values))
        mask = self.batch.decode_mask(self.window)
        if self.softcap is None:
            out = scaled_dot_product_attention(mine, keys, values, attn_mask=mask, scale=self.scaling)
        else:
            scores = self._capped(mine @ keys.transpose(2, 3) * self.scaling).masked_fill(~mask, float("-inf"))
            out = torch.softmax(scores, -1) @ values
        if rows.is_sliced and not rows.is_dense:
            out = out[rows.places]
        return out.reshape(-1, heads, width)

    def row(self, q: Tensor, k: Tensor, v: Tensor, *, first: int) -> Tensor:
        """One row: q [heads, T, D] standing at entries first and on, k and v [K, first + T, D] to [T, heads, D]."""
        queries, entries = q.shape[1], k.shape[1]
        if entries <= SHORT or not self.batch.is_causal:
            return self._explicit(q, k, v, first=first)
        if first == 0 and self.softcap is None and (self.window is None or self.window >= entries):
            out = scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=self.scaling, enable_gqa=True
            )
            return out[0].transpose(0, 1)
        outs = []
        for start in range(0, queries, BLOCK):
            stop = min(start + BLOCK, queries)
            low = 0 if self.window is None else max(0, first + start - self.window + 1)
            reach = first + stop
            outs.append(self._explicit(q[:, start:stop], k[:, low:reach], v[:, low:reach], first=first + start - low))
        return torch.cat(outs)

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, *, first: int) -> Tensor:
        """As row. The query heads of a group are laid under one another, so keys and values are not repeated."""
        heads, queries, width = q.shape
        groups = k.shape[0]
        bias = self.batch.bias(
            q, queries=queries, entries=k.shape[1], first=first, group=heads // groups, window=self.window
        )
        grouped = q.reshape(groups, -1, width)  # [K, group * T, D]
        if self.softcap is None:
            scores = torch.baddbmm(bias, grouped, k.transpose(1, 2), alpha=self.scaling)
        else:
            scores = self._capped(torch.bmm(grouped, k.transpose(1, 2)) * self.scaling) + bias
        out = torch.bmm(torch.softmax(scores, -1), v)  # [K, group * T, D]
        return out.view(heads, queries, -1).transpose(0, 1)

    def _capped(self, scores: Tensor) -> Tensor:
        assert self.softcap is not None
        return torch.tanh(scores / self.softcap) * self.softcap


AttentionInterface.register(NAME, attend_ragged)
AttentionMaskInterface.register(NAME, lambda *_args, **_kwargs: None)
