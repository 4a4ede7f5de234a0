"""The watch over one running child: hears what it tells of its jobs, notices when it hangs, stops what must not go on.

Knows no database: what is to be written goes to the attempts. One job leaves while others go on; where none would stay
the child itself is stopped.
"""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from core.settings import Settings
from core.specs.assignment import Ended, Said, StepReport, Told
from worker.child import Child
from worker.progress import Verdict
from worker.training import GONE, Attempt, Stop

log = structlog.get_logger()

TURN_S = 0.1
CANCEL_GRACE_S = 5.0  # to end by itself, before it is killed: nothing of a cancelled run is kept
STALL_STEPS = 20  # median steps without a word are a hang, if longer than settings.stall_s
REMEMBERED_STEPS = 50


@dataclass(frozen=True)
class Ending:
    """How a child ended. exit_code is negative where a signal ended it. n_settled: jobs that left it before."""

    exit_code: int
    n_settled: int


class Supervision:
    """Of one child, from its start to its end. attempts: by job id; who leaves is settled and taken out.

    join: called every turn as long as others may be let in; it assigns them to the child and puts them into attempts.
    closing: set when this worker has to go.
    """

    def __init__(
        self,
        child: Child,
        attempts: dict[str, Attempt],
        join: Callable[[], None],
        *,
        closing: threading.Event,
        settings: Settings,
    ) -> None:
        self._child, self._attempts, self._join = child, attempts, join
        self._closing, self._settings = closing, settings
        self._is_leaving = False  # it told the end of its last job
        self._kill_at: float | None = None
        self._n_settled = 0
        self._heard_at = time.monotonic()
        self._stepped_at: dict[str, float] = {}
        self._steps_s: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    def run(self) -> Ending:
        """Returns when the child is dead and all it said was heard; the attempts that are left went down with it."""
        try:
            while not self._child.has_ended:
                if told := self._child.next(TURN_S):
                    self._hear(told)
                self._watch()
                if self._kill_at is None and not self._is_leaving:
                    self._join()
        finally:
            self._child.kill()
            exit_code = self._child.reap()
        return Ending(exit_code, self._n_settled)

    def _hear(self, told: Told) -> None:
        attempt = self._attempts.get(told.job_id)
        match told:
            case Ended(code=code) if attempt is not None:
                # The last one is settled when the child is dead: it exits with this very code.
                self._is_leaving = len(self._attempts) == 1
                if not self._is_leaving:
                    self._settle(attempt, code)
            case Said(report=report) if attempt is not None:
                if isinstance(report, StepReport):
                    self._note_step(told.job_id)
                attempt.take(report)
                if attempt.is_over and attempt.stop not in GONE:  # by an error of ours, or fenced
                    self._let_go(attempt, Stop.LOST, grace_s=0)
        self._heard_at = time.monotonic()

    def _settle(self, attempt: Attempt, code: int) -> None:
        del self._attempts[attempt.job_id]
        self._n_settled += 1
        attempt.settle(code, self._child.tail)

    def _note_step(self, job_id: str) -> None:
        now = time.monotonic()
        self._steps_s.append(now - self._stepped_at.get(job_id, self._heard_at))
        self._stepped_at[job_id] = now

    def _watch(self) -> None:
        for attempt in list(self._attempts.values()):
            verdict = attempt.verdict
            if verdict is Verdict.LOST and attempt.stop is not Stop.LOST:
                self._let_go(attempt, Stop.LOST, grace_s=0)
            elif attempt.stop is None and verdict is Verdict.CANCEL:
                self._let_go(attempt, Stop.CANCELLED, grace_s=CANCEL_GRACE_S)
            elif attempt.stop is None and verdict is Verdict.PAUSE:
                self._let_go(attempt, Stop.PAUSED, grace_s=self._settings.drain_s)
        if self._closing.is_set():
            self._stop_all(Stop.DRAINED, grace_s=self._settings.drain_s)
        elif time.monotonic() - self._heard_at > self._patience_s():
            self._stop_all(Stop.STALLED, grace_s=0)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._child.kill()

    def _let_go(self, attempt: Attempt, stop: Stop, grace_s: float) -> None:
        attempt.stop = stop
        others = [other for other in self._attempts.values() if other is not attempt]
        if any(other.stop not in GONE for other in others):
            log.info("job.let_go", job_id=attempt.job_id, pid=self._child.pid, why=stop.name.lower())
            self._child.leave(attempt.job_id)
        else:
            self._stop_child(stop, grace_s)

    def _stop_all(self, stop: Stop, grace_s: float) -> None:
        going_on = [attempt for attempt in self._attempts.values() if attempt.stop is None]
        for attempt in going_on:
            attempt.stop = stop
        # Those who were let go leave by themselves, unless they hang: then they too are stopped.
        if going_on or self._kill_at is None:
            self._stop_child(stop, grace_s)

    def _stop_child(self, stop: Stop, grace_s: float) -> None:
        log.info("child.stopped", pid=self._child.pid, why=stop.name.lower(), grace_s=grace_s)
        self._kill_at = time.monotonic() + grace_s
        if grace_s:
            self._child.terminate()

    def _patience_s(self) -> float:
        usual_s = statistics.median(self._steps_s) if self._steps_s else 0.0
        return max(self._settings.stall_s, STALL_STEPS * usual_s)
