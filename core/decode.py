"""A decode step whose inputs stand where they stood: of so many rows, each of one token, everything else in tensors.

What such a step does to memory depends on no number that the host reads, so a GPU can repeat it without the host
(core/cuda_graph.py). It says what the one forward says; places that no row takes repeat the first row, and so write
what it writes, where it writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.attention import RaggedBatch
from core.cache import KVCache
from core.effects import Effect, LowRank
from core.linear import Flight
from core.model import RoutedModel
from core.ops import choice
from core.ops.segments import Segments
from core.routing import Routing, is_live


@dataclass(frozen=True)
class Stamp:
    """What must be as it was for a captured step to be repeated. Which adapter a row wears, and its slot, need not."""

    moves: int  # of the pool's tensors
    tables: int  # how often the table of who wears what was made anew: once, and for adapters too great for it


class StillStep:
    """One decode step of B rows over one cache."""

    def __init__(self, model: RoutedModel, cache: KVCache, rows: int, *, is_bare: bool) -> None:
        """is_bare: no row wears a low-rank adapter, so that nothing is launched for any."""
        self._model, self._cache, self._rows, self._is_bare = model, cache, rows, is_bare
        with torch.inference_mode(mode=False):
            self._inputs = torch.zeros(4, rows, dtype=torch.long, device=model.device)  # ids, positions, slots, entries
        self._short: Tensor | Segments | None = None
        self._tables = 0

    def fill(self, ids: Sequence[int], slots: Sequence[int], effects: Sequence[Effect | None]) -> Stamp:
        """The rows of the next run: of each its token, its slot and what it wears. Each slot must have room.

        Raises:
            ValueError: more rows than there are places, a full slot, or an effect that no such step knows.

        """
        spare = self._rows - len(ids)
        if spare < 0 or not ids or not all(map(is_still, effects)):
            raise ValueError(f"{len(ids)} rows do not go into a step of {self._rows}, or wear what none knows")
        entries = [self._cache.room(slot, 1) for slot in slots]
        told = [[*row, *[row[0]] * spare] for row in (ids, entries, slots, entries)]
        self._inputs.copy_(torch.tensor(told))
        return self._wear([*effects, *[effects[0]] * spare])

    def run(self) -> Tensor:
        """The hidden states of every place: [B, H]. The cache's keys and values are written, its lengths are not."""
        ids, positions, slots, entries = self._inputs
        routing = Routing((), (-1,) * self._rows)
        starts = tuple(range(self._rows + 1))
        pool = None if self._is_bare else self._model.pool
        flight = Flight(routing, starts, [], pool, None, self._short)
        return self._model.step(ids, positions, flight, RaggedBatch.still(self._cache, slots, entries))

    def _wear(self, effects: Sequence[Effect | None]) -> Stamp:
        """Writes whose rows of the pool each place multiplies, into the tensors that were captured if they fit."""
        if self._is_bare:
            return Stamp(0, 0)
        pool, worn = self._model.pool, [e if isinstance(e, LowRank) else None for e in effects]
        pool.hold(list({id(e): e for e in worn if e is not None}.values()))
        if choice.has_kernels(pool.device):
            self._write_table(worn)
        else:
            self._write_mask(pool.mask(worn))
        return Stamp(pool.moves, self._tables)

    def _write_table(self, worn: Sequence[LowRank | None]) -> None:
        pool, before = self._model.pool, self._short
        reach = pool.reach_for(worn)
        if isinstance(before, Segments) and before.size[2] >= reach:
            now = pool.table(worn, before.size[2])
            before.pages.copy_(now.pages)
            before.counts.copy_(now.counts)
            return
        now = pool.table(worn, reach)
        self._short = Segments(*(t.to(pool.device, copy=True) for t in (now.tokens, now.pages, now.counts)))
        self._tables += 1

    def _write_mask(self, mask: Tensor) -> None:
        if isinstance(self._short, Tensor) and self._short.shape == mask.shape and self._short.dtype == mask.dtype:
            self._short.copy_(mask)
            return
        self._short = mask
        self._tables += 1


def is_still(effect: Effect | None) -> bool:
    """Whether a row that wears this can be in such a step: magnitudes, and what was learned of a table, cannot."""
    return not isinstance(effect, LowRank) or not (effect.magnitude or effect.tables or is_live(effect))
