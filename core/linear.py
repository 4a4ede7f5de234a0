"""What the linear layers of the one forward do: a frozen product, plus each token's own low-rank part."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from core.base.facts import site_of
from core.base.nf4 import Linear4bit
from core.effects import LowRank
from core.ops import choice
from core.ops.grouped import add_low_rank, add_masked, add_paged, product, rescale
from core.ops.packed import FEW as FEW_PACKED
from core.ops.packed import packed_product
from core.ops.plain import Span
from core.ops.pool import Paging, RankPool
from core.ops.segments import Segments
from core.routing import Routing, is_live
from core.siblings import Siblings

FEW = 16  # a span of fewer tokens than this is better served with all other short ones at once
SHARED = 4  # where an adapter has more of the short tokens than one in so many, one product of all is as good
MANY = 64  # in a batch of more tokens than this the short spans are taken out first

OUTSIDE = (
    "the model was called outside `with model.wearing(routing)`: no row knows its adapter. "
    "With checkpointing, backward calls it too and belongs inside"
)


@dataclass(eq=False)
class Flight:
    """One forward in flight: what every RoutedLinear must know of it."""

    routing: Routing
    starts: tuple[int, ...]
    spans: list[Span]  # long ones, each a product of its own
    pool: RankPool | None = None  # serves the short ones
    tokens: Tensor | None = None  # [n] which tokens are short; None is all
    short: Tensor | Paging | Segments | None = None  # a mask [n, R] of the short ones, or the pages they own
    scaled: tuple[Span, ...] = ()  # those of either kind whose effect has magnitudes


@dataclass(eq=False)
class Switchboard:
    """Linear layers receive no keyword arguments, so the batch in flight stands here. Only `wearing` sets it."""

    routing: Routing | None = None
    flight: Flight | None = None


class RoutedLinear(nn.Module):
    """A frozen linear layer, plus each token's own low-rank part."""

    def __init__(self, site: str, base: nn.Module, board: Switchboard) -> None:
        super().__init__()
        self.site, self.base, self._board = site, base, board
        self.packed: Tensor | None = None  # the weight laid out for few tokens
        self.siblings: Siblings | None = None  # those that read the same input, where one product serves all

    @property
    def widths(self) -> tuple[int, int]:
        """I and O."""
        site = site_of(self.site, self.base)
        return site.width_in, site.width_out

    def forward(self, x: Tensor) -> Tensor:
        """X [1, N, I] to [1, N, O]."""
        flight = self._board.flight
        if flight is None:
            raise RuntimeError(OUTSIDE)
        if not flight.spans and flight.pool is None:
            return self._frozen(x)
        flat_x = x.view(-1, x.shape[-1])
        flat_y = self._with_long(flight, flat_x)
        if flight.pool is not None:
            if not isinstance(flight.short, Segments):
                # What siblings answer stands beside that of others, where torch adds to rows ten times as slowly.
                flat_y = flat_y.contiguous()
            self._add_short(flight, flat_x, flat_y)
        if flight.scaled:
            gains = [flight.routing.gain(span.slot, self.site) for span in flight.scaled]
            flat_y = rescale(flat_y, getattr(self.base, "bias", None), flight.scaled, gains)
        return flat_y.view(*x.shape[:-1], -1)

    def _frozen(self, x: Tensor) -> Tensor:
        """The frozen layer alone: x [..., I] to [..., O]."""
        if self.siblings is not None and self.siblings.serves(x):
            return self.siblings.part(self.site, x)
        if self.packed is not None and x.shape[-2] <= FEW_PACKED and not torch.is_grad_enabled():
            return packed_product(x, self.packed, self.base.bias)  # type: ignore[arg-type]
        y: Tensor = self.base(x)
        return y

    def _with_long(self, flight: Flight, x: Tensor) -> Tensor:
        """The frozen product of x [N, I], and what the long spans add to it: [N, O]."""
        if not flight.spans:
            return self._frozen(x)
        parts = flight.routing.parts(self.site)
        dropped = flight.routing.dropped(x, self.site, flight.starts)
        weight = _dense(self.base)
        if dropped is x and weight is not None and torch.is_grad_enabled() and any(parts):
            return product(x, weight, getattr(self.base, "bias", None), parts, flight.spans)
        return add_low_rank(self._frozen(x), dropped, parts, flight.spans)

    def _add_short(self, flight: Flight, x: Tensor, y: Tensor) -> None:
        assert flight.pool is not None
        if isinstance(flight.short, Segments):
            self._add_by_kernels(flight.pool, flight.short, x, y)
            return
        stack = flight.pool.site(self.site)
        if stack is None:
            return
        if flight.tokens is None:
            _add_pooled(y, x, stack, flight.short)
            return
        y[flight.tokens] = _add_pooled(y[flight.tokens], x[flight.tokens], stack, flight.short)

    def _add_by_kernels(self, pool: RankPool, blocks: Segments, x: Tensor, y: Tensor) -> None:
        """Of siblings the first adds for all: what they answered stands side by side already."""
        kernels, group = choice.kernels_for(x.device), pool.group(self.site)
        assert kernels is not None
        if group is None:
            return
        if self.siblings is None:
            kernels.add_segments(y, x, group, blocks)
        elif self.siblings.is_first(self.site):
            kernels.add_segments(self.siblings.answer, x, group, blocks)


def flight_of(routing: Routing, starts: tuple[int, ...], pool: RankPool) -> Flight:
    """What one forward's linear layers need. With gradients every span is a product of its own."""
    spans = routing.spans(starts)
    scaled = tuple(s for s in spans if _low_rank(routing, s.slot).magnitude)
    if torch.is_grad_enabled():
        return Flight(routing, starts, spans, scaled=scaled)
    by_kernels = choice.kernels_for(pool.device) is not None
    short = [s for s in spans if (by_kernels or s.stop - s.start < FEW) and _is_poolable(routing, s.slot, pool)]
    if not short:
        return Flight(routing, starts, spans, scaled=scaled)
    long = [s for s in spans if s not in short]
    worn: dict[int, LowRank] = {n: _low_rank(routing, s.slot) for s in short for n in range(s.start, s.stop)}
    pool.hold(list({id(e): e for e in worn.values()}.values()))
    if by_kernels:
        blocks = pool.segments([worn.get(n) for n in range(starts[-1])])
        return Flight(routing, starts, long, pool, None, blocks, scaled)
    if not long and starts[-1] <= MANY:
        return Flight(routing, starts, [], pool, None, _short(pool, [worn.get(n) for n in range(starts[-1])]), scaled)
    tokens = torch.tensor(list(worn), device=pool.device)
    return Flight(routing, starts, long, pool, tokens, _short(pool, list(worn.values())), scaled)


def _short(pool: RankPool, effects: Sequence[LowRank | None]) -> Tensor | Paging:
    """How the pool serves tokens of these adapters: all rows for every token, or each page for its own."""
    most = max(Counter(map(id, filter(None, effects))).values())
    return pool.paging(effects) if pool.pages_pay and SHARED * most <= len(effects) else pool.mask(effects)


def _add_pooled(y: Tensor, x: Tensor, stack: tuple[Tensor, Tensor], short: Tensor | Paging | Segments | None) -> Tensor:
    """What the pool's a and b say of tokens x [n, I], added to y [n, O], which is returned."""
    if isinstance(short, Paging):
        return add_paged(y, x, *stack, short)
    assert isinstance(short, Tensor)
    return add_masked(y, x, *stack, short)


def _dense(base: nn.Module) -> Callable[[], Tensor] | None:
    """What gives the weight [O, I] that a layer multiplies by, or None for a layer that keeps it another way round."""
    match base:
        case Linear4bit():
            return base.dense
        case nn.Linear():
            return partial(getattr, base, "weight")
    return None


def _is_poolable(routing: Routing, slot: int, pool: RankPool) -> bool:
    # A live adapter changes under its own name at every step, so what the pool copied of it would be stale.
    effect = _low_rank(routing, slot)
    return effect in pool or not is_live(effect)


def _low_rank(routing: Routing, slot: int) -> LowRank:
    effect = routing.effects[slot]
    assert isinstance(effect, LowRank)
    return effect


@dataclass(frozen=True, eq=False)
class Head:
    """The output head: hidden states to logits."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    softcap: float | None  # logits are squeezed into (-softcap, softcap)
    packed: Tensor | None = None  # the weight laid out for few rows

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, H] to [n, V]."""
        if self.packed is not None and len(hidden) <= FEW_PACKED and not torch.is_grad_enabled():
            raw = packed_product(hidden, self.packed, self.bias)
        else:
            raw = nn.functional.linear(hidden, self.weight, self.bias)
        return raw if self.softcap is None else torch.tanh(raw / self.softcap) * self.softcap
