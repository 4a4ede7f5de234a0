"""The step loop: admit, forward, sample, emit. One thread runs it; any thread may submit and cancel.

A step is one ragged forward in which some rows take a chunk of their prompt and others one token, each wearing its own
adapter or none. Whatever goes wrong with one row ends that row alone.
"""

import itertools
import threading
import time
from collections.abc import Callable, Collection

import structlog

from core.cache import KVCache
from core.effects import Effect, Ensemble
from core.model import RoutedModel
from core.specs.generation import FrameError
from worker.engine.endings import CROWDED, EXPIRED, LATE, MIGRATE
from worker.engine.forward import BROKEN, Drawn, Forward, Found, Outcome, Seat, Work
from worker.engine.pace import Pace
from worker.engine.prefix_cache import PrefixCache
from worker.engine.residency import Residency
from worker.engine.scheduler import Scheduler
from worker.engine.seating import Seating
from worker.engine.sequences import Sequence
from worker.engine.tally import BASE, OTHER, Tally

log = structlog.get_logger()

PROMPT_TOKENS = {"cpu": 256, "cuda": 4096}  # of one step, decoding rows included: what others wait for at most
IDLE_S = 0.5  # how long the loop sleeps at most
STALL_S = 10.0  # without a turn for so long while there is work, the loop counts as dead
QUEUE_S = 120.0  # a row that waited so long for a place is to try elsewhere


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
        prefix_cache_bytes: int = 0,
        base: str = "",
        tier: Callable[[str], str] = lambda _: "store",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """load: digest -> serving form (residency.loader). context: tokens of one row.

        base: names the base model and its precision, for the prefix cache; 0 bytes of that are none.
        tier: where an adapter is that is not in memory.
        """
        self._rows, self._context, self._clock, self._tier = rows, context, clock, tier
        self._cache = KVCache.for_model(model, rows, context)
        self._forward = Forward(model, self._cache)
        self._tally, self._pace = Tally(), Pace()
        self._prefixes = PrefixCache(self._cache, memory_bytes=prefix_cache_bytes, base=base)
        self._changed = threading.Condition()  # guards all below; an RLock, so that a load may arrive within a turn
        self._is_woken = False
        self._residency = Residency(
            load, memory_bytes=adapter_memory_bytes, arrived=self._wake, loaded=self._tally.loaded
        )
        self._seating = Seating(self._forward, self._cache, self._residency, self._prefixes, context=context)
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
        """A row joins the queue; its frames go to request.emit. Raises Overloaded or Draining.

        Of a full queue it may push out a row of whoever has the most there.
        """
        with self._changed:
            if self._is_draining:
                raise Draining
            request.accepted_at = now = self._clock()
            if (fin := request.fate()) is not None:
                request.finish(fin)
                return
            if (leaving := self._scheduler.add(request.row(now))) is not None:
                self._leave(leaving, CROWDED)
            self._requests[request.key] = request
            self._tally.asked(request.digest, is_hit=request.digest is None or self._residency.has(request.digest))
            self._wake()

    def cancel(self, key: int) -> None:
        """The row's reader is gone: it takes no part in any step that begins after this."""
        with self._changed:
            self._cancelled.add(key)
            self._wake()

    def forget(self, digests: Collection[str]) -> None:
        """Adapters that were deleted: what they hold is free once the last row that wears one has ended."""
        with self._changed:
            self._residency.forget(digests)
            self._prefixes.forget(digests)

    def adapters(self) -> list[str]:
        """The digests of those in memory."""
        with self._changed:
            return self._residency.names()[0]

    def wait_s(self) -> float:
        """How long a row that came now might wait for a place, as rows ended lately."""
        return self._pace.wait_s(self._scheduler.n_waiting)

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
            by_adapter = self._tally.by_adapter()
            told = {
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
                "wait_s": self.wait_s(),
                "prefix_cache": self._prefixes.told(),
                **self._tally.told(),
            }
        for name in by_adapter.keys() - {BASE, OTHER}:  # without the lock: lower tiers may be asked of a disk
            by_adapter[name]["tier"] = "device" if name in resident else self._tier(name)
        return told | {"by_adapter": by_adapter}

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
                self._sit_down(key)
            for key in self._scheduler.unstarted():
                # What rows before it, perhaps of this very moment, ran of the same prompt need not run again.
                self._scheduler.reuse(key, self._seating.reuse(self._seats[key]))
            held = {key for key in self._scheduler.unstarted() if self._seating.awaits(self._seats[key])}
            work = [Work(self._seats[c.key], c) for c in self._scheduler.plan(held)]
        if not work:
            return False
        began = self._clock()
        outcomes = self._forward.outcomes(work)
        with self._changed:
            self._tally.step(len(work), self._clock() - began)
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
        now = self._clock()
        for key in self._scheduler.expired(now):
            self._leave(key, EXPIRED)
        # What the next turns will wear is fetched while rows before them run.
        head = itertools.islice(self._scheduler.queue(), self._rows)
        self._residency.turn([row.adapter for row in head if row.adapter is not None])
        for row in list(self._scheduler.waiting()):
            fault = self._residency.fault(row.adapter) if row.adapter else None
            if fault is not None or self._requests[row.key].accepted_at < now - QUEUE_S:
                self._leave(row.key, fault or LATE)

    def _sit_down(self, key: int) -> None:
        """A place for an admitted row, or its end."""
        request = self._requests[key]
        length = len(request.ids)
        seat = self._seating.sit(request)
        if isinstance(seat, FrameError):
            self._leave(key, seat)
            return
        self._seats[key] = seat
        self._scheduler.grow(key, len(request.ids) - length)
        self._tally.of(request.digest).prompt_tokens += len(request.ids)

    def _deliver(self, part: Work, outcome: Outcome) -> None:
        seat, request = part.seat, part.seat.request
        self._scheduler.ran(part.chunk)
        if isinstance(outcome, FrameError):
            self._leave(request.key, outcome)
            return
        self._seating.ran(part)
        if outcome is None:
            return
        try:
            self._tell(seat, outcome)
        except Exception:
            log.exception("engine.delivery_failed", key=request.key)
            self._leave(request.key, BROKEN)
            return
        if request.is_over:
            self._pace.ended(self._clock())
            self._leave(request.key)
        else:
            self._scheduler.grow(request.key)

    def _tell(self, seat: Seat, outcome: Drawn | Found) -> None:
        request, now = seat.request, self._clock()
        if isinstance(outcome, Found):
            request.found()
            return
        self.tokens += 1
        self._tally.drew(request.digest, now - (seat.said_at or request.accepted_at), is_first=not seat.said_at)
        seat.said_at = now
        request.take(outcome.token, outcome.logprob, outcome.told)

    def _leave(self, key: int, error: FrameError | None = None) -> None:
        """A row is over, wherever it stands. With an error, its reader is told."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        self._scheduler.drop(key)
        seat = self._seats.pop(key, None)
        if seat is not None:
            self._seating.leave(seat)
        if error is not None:
            try:
                request.fail(error)
            except Exception:
                log.exception("engine.delivery_failed", key=key)
        if not self._requests:
            self._pace.rest()
            self._changed.notify_all()  # drain() waits for this

    def _wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def _sleep(self) -> None:
        with self._changed:
            if not self._is_woken:
                self._changed.wait(IDLE_S)
            self._is_woken = False
