"""Low-rank rows of the adapters now decoding, under one another, so that one product serves them all.

Rows come in pages of PAGE, each of one adapter, so that pages may also be multiplied one by one, each with its own
tokens alone (grouped.add_paged). Pages are claimed by an adapter's first decode step and found again at its next: a
step whose adapters were there before moves no bytes. Rows whose adapter left are masked, not cleared, and taken by
whoever comes next.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.effects import LowRank

PAGE = 4  # rows; of 8 or 16 products are no faster, and more rows are padding
STEP = 16  # the pool grows and shrinks by this many rows
# On a CPU a thin bf16 product costs 25 µs before it begins, an fp32 one 6. Up to this many rows fp32 is faster
# for 1 to 16 tokens (8 tokens, 16 rows, 576 wide: 21 µs against 52 for both products), and never less exact.
NARROW = 64


@dataclass(frozen=True, eq=False)
class Paging:
    """Which tokens each page of the pool multiplies: C at most."""

    tokens: Tensor  # [P C]
    live: Tensor | None  # [P, C, 1] of ones and zeros; None is all ones
    width: int  # C


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

    @property
    def pages_pay(self) -> bool:
        """Whether products page by page are the faster ones; elsewhere static shapes or wide products pay."""
        return self._wide == torch.float32 and self.device.type == "cpu"

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

    def paging(self, effects: Sequence[LowRank | None]) -> Paging:
        """Of each token's adapter, for grouped.add_paged. Pages that none of them owns get a token, and no say."""
        owned: dict[LowRank, list[int]] = {}
        for n, effect in enumerate(effects):
            if effect is not None:
                owned.setdefault(effect, []).append(n)
        pages, width = self._size // PAGE, max(map(len, owned.values()), default=1)
        tokens, live = [[0] * width for _ in range(pages)], [[0.0] * width for _ in range(pages)]
        for effect, mine in owned.items():
            spare = width - len(mine)
            for page in (self._rows[effect][::PAGE] // PAGE).tolist():
                tokens[page], live[page] = mine + [mine[0]] * spare, [1.0] * len(mine) + [0.0] * spare
        flat = torch.tensor(tokens, device=self.device).view(-1)
        is_full = all(map(all, live))
        factors = None if is_full else torch.tensor(live, device=self.device, dtype=self.dtype)[:, :, None]
        return Paging(flat, factors, width)

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
    """Its greatest, in whole pages."""
    return -(-max((a.shape[0] for a in effect.a.values()), default=0) // PAGE) * PAGE
