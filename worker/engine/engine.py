"""The step loop: admit, forward, sample, emit. One thread runs it; any thread may submit and cancel.

A step is one ragged forward in which some rows take a chunk of their prompt and others one token, each wearing its own
adapter or none. Whatever goes wrong with one row ends that row alone.
"""

import threading
import time
from collections.abc import Callable

import structlog

from core.cache import KVCache
from core.effects import Effect, Ensemble, KVPrefix, SoftPrompt, members_of
from core.model import RoutedModel
from core.specs.generation import AdapterRef, FrameError
from core.specs.template import Layout
from worker.engine.forward import BROKEN, Drawn, Forward, Found, Outcome, Seat, Work
from worker.engine.residency import Residency
from worker.engine.scheduler import Row, Scheduler
from worker.engine.sequences import Sequence

log = structlog.get_logger()

PROMPT_TOKENS = {"cpu": 256, "cuda": 4096}  # of one step, decoding rows included: what others wait for at most
IDLE_S = 0.5  # how long the loop sleeps at most
STALL_S = 10.0  # without a turn for so long while there is work, the loop counts as dead
QUEUE_S = 120.0  # a row that waited so long for a place is to try elsewhere
LATE = FrameError(code="engine_overloaded", message="the request waited too long for a place", retryable=True)
MIGRATE = FrameError(code="migrate", message="this engine is stopping; go on at another", retryable=True)


class Draining(Exception):
    """The engine takes no new rows."""


class Engine:
    """One base model, its rows and its adapters."""

    def __init__(
        self,
        model: RoutedModel,
        load: Callable[[str], Effect | Ensemble],
        *,
        rows: int,
        context: int,
        adapter_memory_bytes: int,
        token_budget: int | None = None,
        max_waiting: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """load: digest -> serving form (residency.loader). context: tokens of one row."""
        self._rows, self._context, self._clock = rows, context, clock
        self._cache = KVCache.for_model(model, rows, context)
        self._forward = Forward(model, self._cache)
        self._changed = threading.Condition()  # guards all below; an RLock, so that a load may arrive within a turn
        self._is_woken = False
        self._residency = Residency(load, memory_bytes=adapter_memory_bytes, arrived=self._wake)
        self._scheduler = Scheduler(
            rows=rows,
            token_budget=token_budget or max(rows, PROMPT_TOKENS[model.device.type]),
            max_waiting=4 * rows if max_waiting is None else max_waiting,
        )
        self._requests: dict[int, Sequence] = {}
        self._seats: dict[int, Seat] = {}
        self._cancelled: set[int] = set()
        self._is_draining, self._is_stopped = False, False
        self._ticked_at = clock()
        self.steps, self.tokens, self.prompt_tokens = 0, 0, 0

    # What any thread may call.

    def submit(self, request: Sequence) -> None:
        """A row joins the queue; its frames go to request.emit. Raises Overloaded or Draining."""
        with self._changed:
            if self._is_draining:
                raise Draining
            request.accepted_at = self._clock()
            if (fin := request.fate()) is not None:
                request.finish(fin)
                return
            adapter = request.adapter.sha256 if request.adapter else None
            self._scheduler.add(Row(request.key, len(request.ids), adapter))
            self._requests[request.key] = request
            self._wake()

    def cancel(self, key: int) -> None:
        """The row's reader is gone: it takes no part in any step that begins after this."""
        with self._changed:
            self._cancelled.add(key)
            self._wake()

    def drain(self, timeout_s: float) -> bool:
        """Take no new rows, and wait until those accepted have ended. Whether they did in time."""
        with self._changed:
            self._is_draining = True
            return self._changed.wait_for(lambda: not self._requests, timeout_s)

    def stop(self) -> None:
        """Let run() return: rows under way end, to go on elsewhere."""
        with self._changed:
            self._is_stopped = True
            self._wake()

    @property
    def is_idle(self) -> bool:
        """Whether no row waits or runs."""
        return not self._requests

    @property
    def is_alive(self) -> bool:
        """Whether the step loop turns, or has nothing to do."""
        return self.is_idle or self._clock() - self._ticked_at < STALL_S

    def status(self) -> dict[str, object]:
        """For people and meters."""
        with self._changed:
            resident, loading = self._residency.names()
            return {
                "rows": self._rows,
                "running": self._scheduler.n_running,
                "waiting": self._scheduler.n_waiting,
                "context": self._context,
                "is_draining": self._is_draining,
                "adapters": {"resident": resident, "loading": loading, "bytes": self._residency.size_bytes},
                "adapter_loads": self._residency.loads,
                "steps": self.steps,
                "tokens": self.tokens,
                "prompt_tokens": self.prompt_tokens,
            }

    # The loop's own.

    def run(self) -> None:
        """Turns until stop(), or until an exception escapes a step. No row is left without a last frame."""
        try:
            while not self._is_stopped:
                self._ticked_at = self._clock()
                if not self.step():
                    self._sleep()
        finally:
            with self._changed:
                self._is_draining = True
                for key in list(self._requests):
                    self._leave(key, MIGRATE)
            self._residency.close()

    def step(self) -> bool:
        """One turn. Whether anything ran."""
        with self._changed:
            self._let_go()
            for key in self._scheduler.admit(self._residency.readiness):
                self._sit_down(self._requests[key])
            work = [Work(self._seats[c.key], c) for c in self._scheduler.plan()]
        if not work:
            return False
        outcomes = self._forward.outcomes(work)
        with self._changed:
            for part, outcome in zip(work, outcomes, strict=True):
                self._deliver(part, outcome)
        self.steps += 1
        self.prompt_tokens += sum(w.chunk.count for w in work if w.chunk.count > 1)
        return True

    def _let_go(self) -> None:
        """Of rows that are cancelled, late, or whose adapter is not coming."""
        for key in self._cancelled:
            self._leave(key)
        self._cancelled.clear()
        waiting = list(self._scheduler.waiting())
        self._residency.turn(row.adapter for row in waiting[: self._rows] if row.adapter is not None)
        late = self._clock() - QUEUE_S
        for row in waiting:
            request = self._requests[row.key]
            fault = self._residency.fault(row.adapter) if row.adapter else None
            if fault is not None or request.accepted_at < late:
                self._leave(row.key, fault or LATE)

    def _sit_down(self, request: Sequence) -> None:
        """A place for an admitted row: a slot, its adapter pinned, its prefix first, its prompt in its template."""
        slot = self._cache.take()
        assert slot is not None, "the scheduler admits no more rows than there are slots"
        found = None if request.adapter is None else self._worn(request.adapter)
        effect = None if isinstance(found, FrameError) else found
        self._seats[request.key] = Seat(request, slot, effect)
        if isinstance(found, FrameError):
            self._leave(request.key, found)
            return
        prefix = effect.keys.shape[1] if isinstance(effect, KVPrefix) else 0
        layout = effect.layout if isinstance(effect, SoftPrompt) else Layout((), ())
        room = self._context - prefix - len(layout)
        if room <= len(request.ids):
            self._leave(request.key, _too_long(len(request.ids), room))
            return
        if isinstance(effect, KVPrefix):
            self._cache.put_prefix(slot, effect)
        request.lay_out(layout, room - len(request.ids))
        self._scheduler.grow(request.key, len(layout))

    def _worn(self, adapter: AdapterRef) -> Effect | FrameError:
        """What a row wears of an adapter, which is pinned for it: the whole, or one member of an ensemble."""
        members = members_of(self._residency.pin(adapter.sha256))
        member = 0 if adapter.member is None and len(members) == 1 else adapter.member
        if member is None or member >= len(members):
            return _no_member(adapter, len(members))
        return members[member]

    def _deliver(self, part: Work, outcome: Outcome) -> None:
        request = part.seat.request
        self._scheduler.ran(part.chunk)
        if isinstance(outcome, FrameError):
            self._leave(request.key, outcome)
        elif outcome is not None:
            try:
                self._tell(request, outcome)
            except Exception:
                log.exception("engine.delivery_failed", key=request.key)
                self._leave(request.key, BROKEN)
                return
            if request.is_over:
                self._leave(request.key)
            else:
                self._scheduler.grow(request.key)

    def _tell(self, request: Sequence, outcome: Drawn | Found) -> None:
        if isinstance(outcome, Found):
            request.found()
            return
        self.tokens += 1
        request.take(outcome.token, outcome.logprob, outcome.told)

    def _leave(self, key: int, error: FrameError | None = None) -> None:
        """A row is over, wherever it stands. With an error, its reader is told."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        self._scheduler.drop(key)
        seat = self._seats.pop(key, None)
        if seat is not None:
            self._clear(seat)
        if error is not None:
            try:
                request.fail(error)
            except Exception:
                log.exception("engine.delivery_failed", key=key)
        if not self._requests:
            self._changed.notify_all()  # drain() waits for this

    def _clear(self, seat: Seat) -> None:
        self._forward.clear(seat)
        if seat.request.adapter is not None:
            self._residency.unpin(seat.request.adapter.sha256)

    def _wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def _sleep(self) -> None:
        with self._changed:
            if not self._is_woken:
                self._changed.wait(IDLE_S)
            self._is_woken = False


def _no_member(adapter: AdapterRef, members: int) -> FrameError:
    asked = "none is named" if adapter.member is None else f"there is no member {adapter.member}"
    message = f"the adapter has {members} members, of which a row wears one: {asked}; they count from 0"
    return FrameError(code="unknown_member", message=message, param="model")


def _too_long(tokens: int, room: int) -> FrameError:
    return FrameError(
        code="context_length_exceeded",
        message=f"the prompt has {tokens} tokens; with this adapter there is room for {max(room - 1, 0)}",
        param="messages",
    )
