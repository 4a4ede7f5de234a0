"""Low-rank rows of the adapters now decoding, under one another, so that one product serves them all.

Rows are claimed by an adapter's first decode step and found again at its next: a step whose adapters were there before
moves no bytes. Rows whose adapter left are masked, not cleared, and taken by whoever comes next.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from core.effects import LowRank

STEP = 16  # the pool grows and shrinks by this many rows
# On a CPU a thin bf16 product costs 25 µs before it begins, an fp32 one 6. Up to this many rows fp32 is faster
# for 1 to 16 tokens (8 tokens, 16 rows, 576 wide: 21 µs against 52 for both products), and never less exact.
NARROW = 64


class RankPool:
    """The stacked rows of every site: a [R, I] and b [R, O], where R covers all adapters of the pool."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._wide = device, dtype
        self._rows: weakref.WeakKeyDictionary[LowRank, Tensor] = weakref.WeakKeyDictionary()  # adapter -> its rows
        self._sites: dict[str, tuple[Tensor, Tensor]] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """R."""
        return self._size

    def __contains__(self, effect: LowRank) -> bool:
        return effect in self._rows

    def site(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A [R, I] and b [R, O] of one site, or None if no adapter of the pool touches it."""
        return self._sites.get(name)

    @property
    def dtype(self) -> torch.dtype:
        """What the pool multiplies in: the model's type, or fp32 where that is faster."""
        return torch.float32 if self._size <= NARROW and self.device.type == "cpu" else self._wide

    def hold(self, effects: Sequence[LowRank]) -> None:
        """Have these adapters in the pool, and as few others as that takes. They are resident: no gradients."""
        missing = [e for e in effects if e not in self._rows]
        needed = sum(_rank(e) for e in effects)
        if not missing and 4 * needed > self._size - STEP:
            return
        self._leave_but(effects)
        free = self._free()
        if sum(_rank(e) for e in missing) > len(free) or 4 * needed <= self._size - STEP:
            self._resize(-(-needed // STEP) * STEP)
            missing, free = list(effects), list(range(self._size))
        # The pool outlives the step that fills it, which may run in inference mode or without.
        with torch.inference_mode(mode=False), torch.no_grad():
            for effect in missing:
                rank = _rank(effect)
                rows, free = free[:rank], free[rank:]
                self._write(effect, torch.tensor(rows, dtype=torch.long, device=self.device))

    def mask(self, effects: Sequence[LowRank | None]) -> Tensor:
        """[N, R]: ones at the rows of each token's adapter."""
        mask = torch.zeros(len(effects), self._size, device=self.device, dtype=self.dtype)
        for n, effect in enumerate(effects):
            if effect is not None:
                mask[n, self._rows[effect]] = 1
        return mask

    def _leave_but(self, effects: Sequence[LowRank]) -> None:
        kept = {id(e) for e in effects}
        for effect in list(self._rows):
            if id(effect) not in kept:
                del self._rows[effect]

    def _free(self) -> list[int]:
        used = {row for rows in self._rows.values() for row in rows.tolist()}
        return [row for row in range(self._size) if row not in used]

    def _resize(self, size: int) -> None:
        self._rows.clear()
        self._sites.clear()
        self._size = size

    def _write(self, effect: LowRank, rows: Tensor) -> None:
        # Tables are read where the words are, not where layers multiply.
        for name in self._sites.keys() | (effect.a.keys() - effect.tables):
            a, b = self._stack(name, effect)
            own = effect.a[name].shape[0] if name in effect.a else 0
            if own:
                a[rows[:own]] = effect.a[name].to(a)
                b[rows[:own]] = (effect.b[name].float() * effect.scale[name]).to(b).T
            # A row of zeros in b is enough to say nothing: at sites that this adapter leaves alone, or where its rank
            # is smaller. What a held may have come from one that left.
            b[rows[own:]] = 0
        self._rows[effect] = rows

    def _stack(self, name: str, effect: LowRank) -> tuple[Tensor, Tensor]:
        if name not in self._sites:
            widths = effect.a[name].shape[1], effect.b[name].shape[0]  # I and O
            a, b = (torch.zeros(self._size, w, device=self.device, dtype=self.dtype) for w in widths)
            self._sites[name] = (a, b)
        return self._sites[name]


def _rank(effect: LowRank) -> int:
    return max((a.shape[0] for a in effect.a.values()), default=0)
