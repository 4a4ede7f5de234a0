"""Low-rank rows of the adapters now decoding, under one another, so that one product serves them all.

Rows come in pages of PAGE, each of one adapter, so that pages may also be multiplied one by one, each with its own
tokens alone (grouped.add_paged). Pages are claimed by an adapter's first decode step and found again at its next: a
step whose adapters were there before moves no bytes. Rows whose adapter left are masked, not cleared, and taken by
whoever comes next.

Where kernels serve, layers that read one input may share a stack, so that one launch answers for all of them; and rows
that nobody wears cost nothing there, so the pool grows by doubling and keeps adapters until it needs their room.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.effects import LowRank
from core.ops.segments import PAGE, WIDE, Group, Segments, alone, blocks_of, segments, width_for

# PAGE is 4: of 8 or 16 rows products are no faster, and more rows are padding.
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

    def __init__(self, *, device: torch.device, dtype: torch.dtype, is_for_kernels: bool = False) -> None:
        self.device, self._wide, self.is_for_kernels = device, dtype, is_for_kernels
        self._rows: weakref.WeakKeyDictionary[LowRank, Tensor] = weakref.WeakKeyDictionary()  # adapter -> its rows
        self._stacks: dict[tuple[str, ...], Stack] = {}  # by the sites that share one
        self._shared: dict[str, dict[str, int]] = {}  # site -> the sites it shares a stack with, and their O
        self._size = 0
        self.moves = 0  # how often tensors of the pool were made anew: what was captured of them before is void

    @property
    def size(self) -> int:
        """R."""
        return self._size

    def __contains__(self, effect: LowRank) -> bool:
        return effect in self._rows

    def share(self, sites: dict[str, int]) -> None:
        """These sites, with their O, read one input and give their outputs side by side: one stack for all of them."""
        assert self.is_for_kernels
        self._shared |= dict.fromkeys(sites, sites)

    def site(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A [R, I] and b [R, O] of one site, or None if no adapter of the pool touches it."""
        stack = self._stacks.get((name,))
        return None if stack is None else stack.alone

    def group(self, name: str) -> Group | None:
        """The stack of a site and of those that share it, or None if no adapter of the pool touches any."""
        return self._stacks.get(self._sharing(name))

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
        is_wide = not self.is_for_kernels and 4 * needed <= self._size - STEP
        if not missing and not is_wide:
            return
        free = self._free()
        if not self.is_for_kernels or sum(map(_rank, missing)) > len(free):
            self._leave_but(effects)
            free = self._free()
        if is_wide or sum(map(_rank, missing)) > len(free):
            self._resize(_doubled(needed) if self.is_for_kernels else -(-needed // STEP) * STEP)
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
        owned = _owned(effects)
        pages, width = self._size // PAGE, max(map(len, owned.values()), default=1)
        tokens, live = [[0] * width for _ in range(pages)], [[0.0] * width for _ in range(pages)]
        for effect, mine in owned.items():
            spare = width - len(mine)
            for page in self._pages(effect):
                tokens[page], live[page] = mine + [mine[0]] * spare, [1.0] * len(mine) + [0.0] * spare
        flat = torch.tensor(tokens, device=self.device).view(-1)
        is_full = all(map(all, live))
        factors = None if is_full else torch.tensor(live, device=self.device, dtype=self.dtype)[:, :, None]
        return Paging(flat, factors, width)

    def segments(self, effects: Sequence[LowRank | None]) -> Segments:
        """Of each token's adapter, for kernels."""
        owned = [(self._pages(effect), tokens) for effect, tokens in _owned(effects).items()]
        width = width_for([tokens for _, tokens in owned])
        return segments([(own, pages) for pages, own in blocks_of(owned, width)], width, device=self.device)

    def table(self, effects: Sequence[LowRank | None], reach: int) -> Segments:
        """As segments, in a shape that says nothing of who wears what: a block for each token, of reach pages."""
        return alone([[] if e is None else self._pages(e) for e in effects], reach)

    def reach_for(self, effects: Sequence[LowRank | None]) -> int:
        """A reach for such a table, of few values: the pages of the greatest rank, doubled from those of 16 rows."""
        return _doubled(max((_rank(e) for e in effects if e is not None), default=1), WIDE) // PAGE

    def _pages(self, effect: LowRank) -> list[int]:
        pages: list[int] = (self._rows[effect][::PAGE] // PAGE).tolist()
        return pages

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
        self._stacks.clear()
        self._size = size

    def _write(self, effect: LowRank, rows: Tensor) -> None:
        # Tables are read where the words are, not where layers multiply.
        for site in effect.a.keys() - effect.tables:
            self._make(site, effect)
        pages, places = rows // PAGE, rows % PAGE
        for stack in self._stacks.values():
            for site, (member, columns) in stack.members.items():
                own = effect.a[site].shape[0] if site in effect.a else 0
                if own:
                    stack.a[pages[:own], member, places[:own]] = effect.a[site].to(stack.a)
                    stack.b[rows[:own], columns] = (effect.b[site].float() * effect.scale[site]).to(stack.b).T
                # A row of zeros in b is enough to say nothing: at sites that this adapter leaves alone, or where its
                # rank is smaller. What a held may have come from one that left.
                stack.b[rows[own:], columns] = 0
        self._rows[effect] = rows

    def _make(self, site: str, effect: LowRank) -> None:
        """The stack of a site, if there is none yet."""
        sites = self._sharing(site)
        if sites in self._stacks:
            return
        widths = self._shared.get(site, {site: effect.b[site].shape[0]})  # O of each
        self._stacks[sites] = _stack(widths, effect.a[site].shape[1], self._size, device=self.device, dtype=self.dtype)
        self.moves += 1

    def _sharing(self, site: str) -> tuple[str, ...]:
        return tuple(self._shared.get(site, (site,)))


@dataclass(frozen=True, eq=False)
class Stack(Group):
    """A group whose members have names."""

    members: dict[str, tuple[int, slice]]  # site -> its place in a, its columns in b
    alone: tuple[Tensor, Tensor]  # a [G R, I], which of one member is [R, I], and b


def _stack(widths: dict[str, int], inputs: int, rows: int, *, device: torch.device, dtype: torch.dtype) -> Stack:
    """Empty, of sites of these O."""
    members, stop = {}, 0
    for member, (site, width) in enumerate(widths.items()):
        members[site] = (member, slice(stop, stop + width))
        stop += width
    bounds = [[columns.start for _, columns in members.values()], [columns.stop for _, columns in members.values()]]
    a = torch.zeros(rows // PAGE, len(members), PAGE, inputs, device=device, dtype=dtype)
    b = torch.zeros(rows, stop, device=device, dtype=dtype)
    edges = torch.tensor(bounds, dtype=torch.int32, device=device)
    return Stack(a, b, edges, max(widths.values()), members, (a.view(-1, inputs), b))


def _owned(effects: Sequence[LowRank | None]) -> dict[LowRank, list[int]]:
    """The tokens of each adapter."""
    owned: dict[LowRank, list[int]] = {}
    for n, effect in enumerate(effects):
        if effect is not None:
            owned.setdefault(effect, []).append(n)
    return owned


def _doubled(needed: int, least: int = 64) -> int:
    """A power of two, or so many times least as one is."""
    while least < needed:
        least *= 2
    return least


def _rank(effect: LowRank) -> int:
    """Its greatest, in whole pages."""
    return -(-max((a.shape[0] for a in effect.a.values()), default=0) // PAGE) * PAGE
