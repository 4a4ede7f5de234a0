"""The watch over one running child: hears its reports, notices when it hangs, stops it where it must not go on.

Knows no database: what is to be written goes to Progress and to publish.
"""

import enum
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from core.settings import Settings
from core.specs.assignment import CheckpointReport, FailedReport, FinishedReport, Report, StepReport
from worker.child import Child
from worker.progress import Progress, Verdict

log = structlog.get_logger()

TURN_S = 0.1
CANCEL_GRACE_S = 5.0  # to end by itself, before it is killed: nothing of a cancelled run is kept
STALL_STEPS = 20  # median steps without a word are a hang, if longer than settings.stall_s
REMEMBERED_STEPS = 50


class Stop(enum.Enum):
    """Why a child was stopped by us."""

    CANCELLED = enum.auto()
    DRAINED = enum.auto()
    STALLED = enum.auto()
    LOST = enum.auto()


@dataclass(frozen=True)
class Ending:
    """How a child ended: by itself (stop None) or because of us. exit_code is negative where a signal ended it."""

    exit_code: int
    stop: Stop | None
    finished: FinishedReport | None
    failed: FailedReport | None


class Supervision:
    """Of one child, from its start to its end. closing: set when this worker has to go."""

    def __init__(
        self,
        child: Child,
        progress: Progress,
        publish: Callable[[CheckpointReport], None],
        *,
        closing: threading.Event,
        settings: Settings,
    ) -> None:
        self._child, self._progress, self._publish = child, progress, publish
        self._closing, self._settings = closing, settings
        self._stop: Stop | None = None
        self._kill_at: float | None = None
        self._heard_at = self._stepped_at = time.monotonic()
        self._steps_s: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._finished: FinishedReport | None = None
        self._failed: FailedReport | None = None

    def run(self) -> Ending:
        """Returns when the child is dead and all it said was heard. Whatever publish raises passes, the child dead."""
        try:
            while not self._child.has_ended:
                if report := self._child.next(TURN_S):
                    self._hear(report)
                self._watch()
        finally:
            self._child.kill()
            exit_code = self._child.reap()
        return Ending(exit_code, self._stop, self._finished, self._failed)

    def _hear(self, report: Report) -> None:
        self._progress.take(report)
        match report:
            case StepReport():
                self._steps_s.append(time.monotonic() - self._stepped_at)
                self._stepped_at = time.monotonic()
            case CheckpointReport() if self._stop not in (Stop.LOST, Stop.CANCELLED):
                self._publish(report)
            case FinishedReport():
                self._finished = report
            case FailedReport():
                self._failed = report
        self._heard_at = time.monotonic()

    def _watch(self) -> None:
        verdict = self._progress.verdict
        if verdict is Verdict.LOST:
            self._stop_child(Stop.LOST, grace_s=0)
        elif self._stop is None and verdict is Verdict.CANCEL:
            self._stop_child(Stop.CANCELLED, grace_s=CANCEL_GRACE_S)
        elif self._stop is None and self._closing.is_set():
            self._stop_child(Stop.DRAINED, grace_s=self._settings.drain_s)
        elif self._stop is None and time.monotonic() - self._heard_at > self._patience_s():
            self._stop_child(Stop.STALLED, grace_s=0)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._child.kill()

    def _stop_child(self, stop: Stop, grace_s: float) -> None:
        if self._stop is stop:
            return
        log.info("child.stopped", pid=self._child.pid, why=stop.name.lower(), grace_s=grace_s)
        self._stop, self._kill_at = stop, time.monotonic() + grace_s
        if grace_s:
            self._child.terminate()

    def _patience_s(self) -> float:
        usual_s = statistics.median(self._steps_s) if self._steps_s else 0.0
        return max(self._settings.stall_s, STALL_STEPS * usual_s)
