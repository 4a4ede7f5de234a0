"""One step's rows through the model: who draws which token, and whose numbers are no numbers.

A row's numbers are checked before its token is drawn. When a whole batch fails, its rows run again one by one, so that
the guilty one is found and the others go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor

from core.cache import KVCache
from core.effects import Effect, KVPrefix
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.specs.generation import FrameError
from worker.engine.lexicon import SchemaError
from worker.engine.likelihood import Told, tell
from worker.engine.reading import Part, Reading
from worker.engine.sampling import choose, logprobs
from worker.engine.scheduler import Chunk
from worker.engine.sequences import Sequence as Request
from worker.engine.shaping import Draw
from worker.engine.still import StillSteps, still_steps

log = structlog.get_logger()

INVALID = FrameError(code="model_output_invalid", message="the model's output for this request was not finite")
BROKEN = FrameError(code="internal_error", message="the engine could not run this request")
UNFOLLOWED = FrameError(
    code="schema_too_complex", message="the schema has become too complex to be followed", param="response_format"
)
NO_MEMORY = FrameError(code="out_of_memory", message="the engine had no memory for this request", retryable=True)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row's next token. logprob: how likely it was, for a row that asks."""

    token: int
    logprob: float | None = None
    told: Told | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A row that is only read has been read to its end."""


# The token drawn, the end of a row that is only read, the row's own error, or None in the midst of a prompt.
Outcome = Drawn | Found | FrameError | None


@dataclass(slots=True, eq=False)
class Seat:
    """Where a running row keeps its keys and values, and what it wears."""

    request: Request
    slot: int
    effect: Effect | None
    first: int = 0  # the entry of its first token: after its prefix
    links: list[bytes] = field(default_factory=list)  # what the prefix cache knows its blocks by
    n_kept: int = 0  # how many of them are in the prefix cache
    has_run: bool = False
    said_at: float = 0.0  # when it drew its last token, by the engine's clock; 0 before the first


@dataclass(frozen=True, slots=True)
class Work:
    """One row's part in a step."""

    seat: Seat
    chunk: Chunk

    @property
    def ids(self) -> list[int]:
        """The tokens that run."""
        return self.seat.request.ids[self.chunk.start : self.chunk.start + self.chunk.count]


class Forward:
    """The model and the cache of the rows that run."""

    def __init__(self, model: RoutedModel, cache: KVCache, still: StillSteps | None = None) -> None:
        """still: what repeats decode steps, if the device can."""
        self._model, self._cache = model, cache
        self._still = still_steps(model, cache) if still is None else still

    def outcomes(self, work: list[Work]) -> list[Outcome]:
        """Of each row. A row with an error must leave; the cache of the others has grown by their chunk."""
        before = [self._cache.lengths[w.seat.slot] for w in work]
        try:
            return self._draw(work)
        except Exception as error:
            for part, length in zip(work, before, strict=True):
                self._cache.lengths[part.seat.slot] = length
            if len(work) > 1:
                log.warning("engine.batch_failed", rows=len(work), exc_info=True)
                return [self.outcomes([part])[0] for part in work]
            log.exception("engine.row_failed", key=work[0].seat.request.key)
            return [NO_MEMORY if isinstance(error, torch.OutOfMemoryError) else BROKEN]

    def clear(self, seat: Seat) -> None:
        """Free a row's slot. A row cut short is wiped out first.

        A shorter row that sits there later multiplies what lies past its own end by zero, and zero times NaN is NaN.
        """
        if not seat.request.is_over:
            prefix = seat.effect.keys.shape[1] if isinstance(seat.effect, KVPrefix) else 0
            reach = min(self._cache.length, prefix + len(seat.request.ids))
            self._cache.keys[:, seat.slot, :, :reach] = 0
            self._cache.values[:, seat.slot, :, :reach] = 0
        self._cache.release(seat.slot)

    @torch.inference_mode()
    def _draw(self, work: Sequence[Work]) -> list[Outcome]:
        """One forward, and a token for each row whose last known token is in it."""
        hidden, starts = self._hidden(work)  # [N, H]
        ends = hidden[torch.tensor(starts[1:], device=hidden.device) - 1]  # [B, H]
        outcomes: list[Outcome] = [None if ok else INVALID for ok in _is_finite(ends)]
        parts = self._parts(work, starts, hidden)
        lasts = [i for i, w in enumerate(work) if w.chunk.is_last and outcomes[i] is None and i not in parts]
        if lasts:
            logits = self._model.logits(ends[torch.tensor(lasts, device=ends.device)])  # [n, V]
            drawn = _choose(logits, [work[i].seat.request for i in lasts])
            for i, outcome in zip(lasts, drawn, strict=True):
                outcomes[i] = outcome
        # Last of all: a step that fails before this runs again, and what it read counts once.
        for i, (reading, part) in parts.items():
            reading.add(part)
            if not reading.is_finite:
                outcomes[i] = INVALID
            elif work[i].chunk.is_last:
                outcomes[i] = Found()
        return outcomes

    def _hidden(self, work: Sequence[Work]) -> tuple[Tensor, tuple[int, ...]]:
        """The hidden states of all tokens [N, H], and where each row of them begins: B + 1."""
        still, effects = self._still, [w.seat.effect for w in work]
        if still is not None and still.serves([w.chunk.count for w in work], effects):
            try:
                ids = [w.ids[0] for w in work]
                return still.run(ids, [w.seat.slot for w in work], effects), tuple(range(len(work) + 1))
            except Exception:
                # Rows are not to pay for what only makes them faster: from here on steps are run one by one.
                log.exception("engine.still_steps_failed", rows=len(work))
                self._still = None
        slots = [w.seat.slot for w in work]
        rows = Rows.of(
            [w.ids for w in work],
            first_positions=[self._cache.lengths[slot] for slot in slots],
            slots=slots,
            device=self._model.device,
        )
        with self._model.wearing(Routing.of_rows(effects)):
            return self._model(rows, self._cache), rows.starts

    def _parts(self, work: Sequence[Work], starts: Sequence[int], hidden: Tensor) -> dict[int, tuple[Reading, Part]]:
        """What this step says of those rows that are only read, by their place in it. hidden [N, H]."""
        readers = [(i, w, reading) for i, w in enumerate(work) if (reading := w.seat.request.reading)]
        parts = {}
        for i, w, reading in readers:
            own = hidden[starts[i] : starts[i + 1]]
            parts[i] = reading, reading.part(self._model, own, w.seat.request.ids, w.chunk.start)
        return parts


def _choose(logits: Tensor, requests: Sequence[Request]) -> list[Outcome]:
    """Of rows that have reached their last known token. logits [n, V]."""
    draws = [_draw_of(request) for request in requests]
    outcomes: list[Outcome] = [INVALID if isinstance(draw, Draw) else draw for draw in draws]
    going = [i for i, ok in enumerate(_is_finite(logits)) if ok and isinstance(draws[i], Draw)]
    if going:
        own = logits if len(going) == len(requests) else logits[torch.tensor(going, device=logits.device)]
        drawn = _drawn(own, [d for i in going if isinstance(d := draws[i], Draw)], [requests[i] for i in going])
        for i, outcome in zip(going, drawn, strict=True):
            outcomes[i] = outcome
    return outcomes


def _draw_of(request: Request) -> Draw | FrameError:
    try:
        return request.draw()
    except SchemaError:
        return UNFOLLOWED


def _drawn(logits: Tensor, draws: Sequence[Draw], requests: Sequence[Request]) -> Iterator[Drawn]:
    """A token for each row, and what its request wants to know of it. logits [n, V] finite."""
    tokens = choose(logits, draws)
    voting = [i for i, request in enumerate(requests) if request.wants_logprob]
    likely = logprobs(logits[voting], [draws[i] for i in voting], [tokens[i] for i in voting])
    shares = dict(zip(voting, likely, strict=True))
    asking = [i for i, request in enumerate(requests) if request.top_logprobs is not None]
    top = [requests[i].top_logprobs or 0 for i in asking]
    told = dict(zip(asking, tell(logits[asking], [tokens[i] for i in asking], top), strict=True))
    return (Drawn(token, shares.get(i), told.get(i)) for i, token in enumerate(tokens))


def _is_finite(values: Tensor) -> list[bool]:
    """Of each row of [n, X]. One sum tells: what is finite here is far too small to add up to infinity."""
    flags: list[bool] = torch.isfinite(values.sum(-1, dtype=torch.float32)).tolist()
    return flags
