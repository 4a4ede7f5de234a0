"""One attempt at one job: prepared, published, marked. The job's row decides; this only does what it says."""

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from core.blobs import BlobStore
from core.records import jobs
from core.records.database import Database
from core.records.events import Event
from core.settings import Settings
from core.specs.assignment import (
    FINISHED,
    NOT_FINITE,
    USER_ERROR,
    Assignment,
    CheckpointReport,
    FailedReport,
    FinishedReport,
    RateReport,
    Report,
)
from worker.preparing import Refusal, prepare, restore, smaller
from worker.progress import Progress, Verdict
from worker.publishing import STORE_ERRORS, Publisher
from worker.room import jobs_in_step
from worker.workdir import WorkDir

log = structlog.get_logger()

RETRY_S = 0.5
AWAY = (OperationalError, InterfaceError, PoolTimeoutError)  # a database that may be back in a moment
DIVERGED = FailedReport(code="diverged", message="The loss was no longer a number; a lower learning rate may help.")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workshop:
    """What every attempt of this worker uses. ring: the bell, for what goes on elsewhere. closing: it is time to go.

    is_crowded: memory was once not enough for jobs in step.
    """

    settings: Settings
    db: Database
    blobs: BlobStore
    ring: Callable[[str], object]
    closing: threading.Event = field(default_factory=threading.Event)
    is_crowded: threading.Event = field(default_factory=threading.Event)

    @property
    def most_in_step(self) -> int:
        """How many jobs may train together now."""
        return 1 if self.is_crowded.is_set() else self._that_fit

    @cached_property
    def _that_fit(self) -> int:
        return jobs_in_step(self.settings)


class Stop(enum.Enum):
    """Why an attempt was stopped by us."""

    CANCELLED = enum.auto()
    PAUSED = enum.auto()
    DRAINED = enum.auto()
    STALLED = enum.auto()
    LOST = enum.auto()


GONE = (Stop.CANCELLED, Stop.LOST)  # nothing is kept of such an attempt any more


class Attempt:
    """What a claim gives the right to. It is opened, takes what its trainer reports, and is settled: then it is over.

    Nothing that goes wrong here passes: others may be training beside it. on_lost: see Progress.
    """

    assignment: Assignment  # since open()

    def __init__(self, held: jobs.Claim, shop: Workshop, on_lost: Callable[[], None] = lambda: None) -> None:
        self._held, self._shop, settings = held, shop, shop.settings
        self.job_id, self.is_alone = held.job_id, held.is_alone
        self.stop: Stop | None = None
        self.is_over = False
        self.is_unheard = True
        self._folder = WorkDir(settings.data_dir, held.job_id, held.lease_epoch, shop.blobs)
        self._progress = Progress(
            shop.db, held, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s, on_lost=on_lost
        )
        self._finished: FinishedReport | None = None
        self._failed: FailedReport | None = None
        self._log = log.bind(job_id=held.job_id, lease_epoch=held.lease_epoch)

    def open(self) -> bool:
        """Renew the lease from now on, and fill the folder. False: it is over already."""
        self._log.info("job.claimed", attempt=self._held.attempt, owner=self._held.owner)
        self._progress.start()
        if self._guarded(self._prepare):
            return True
        self._folder.close()
        return False

    @property
    def kin(self) -> jobs.Kin:
        """Who may train beside it."""
        spec = self.assignment.spec
        return jobs.Kin(
            spec.base_model, spec.method.base_precision, spec.activation_checkpointing, spec.activation_offload
        )

    @property
    def verdict(self) -> Verdict:
        """Whether to go on."""
        return self._progress.verdict

    @property
    def is_lost(self) -> bool:
        """Whether its lease was found to be lost, or is no longer renewed."""
        return self.is_over or self._progress.is_lost

    def take(self, report: Report) -> None:
        """Write down, publish or remember what the trainer said. It may be over then, the trainer still at it."""
        self.is_unheard = False
        if self.is_over:
            return
        self._progress.take(report)
        match report:
            case CheckpointReport() if self.stop not in GONE:
                self._guarded(lambda: self._publish(report))
            case RateReport() if self.stop not in GONE:
                self._guarded(lambda: self._settle_rate(report))
            case FinishedReport():
                self._finished = report
            case FailedReport():
                self._failed = report

    def settle(self, code: int, tail: Callable[[], str]) -> None:
        """Move the job on, now that its trainer has done with it: code is how. tail: the last of the trainer's log."""
        self._last(lambda: self._settle(code, tail))

    def give_back(self) -> None:
        """To the queue again: it could not be trained in this company, for which it is not to blame."""
        self._last(self._drain)

    def abandon(self) -> None:
        """Leave the job to its lease's end."""
        self._last(lambda: None)

    def _last(self, act: Callable[[], None]) -> None:
        if not self.is_over and self._guarded(act):
            self._close()
        self._folder.close()

    def shrink(self) -> bool:
        """Go on with half the tokens in a forward. False: it is over, for that cannot be halved."""

        def halve() -> None:
            self.assignment = smaller(self.assignment, self._progress)

        return not self.is_over and self._guarded(halve)

    def _guarded(self, act: Callable[[], None]) -> bool:
        """Whether it went well. If not, this attempt is over; what has no name leaves the job to its lease's end."""
        try:
            self._told(act)
        except jobs.Fenced:
            self._log.warning("job.fenced")
        except SQLAlchemyError as error:
            self._log.warning("database.away", error=type(error).__name__)
        except Exception:  # noqa: BLE001 - a bug of ours in one job must not end its company's attempts
            self._log.exception("attempt.abandoned")
        else:
            return not self.is_over
        self._close()
        return False

    def _told(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Refusal as refusal:
            self._fail(FailedReport(code=refusal.code, message=str(refusal), param=refusal.param))
            self._close()
        except STORE_ERRORS as error:
            self._log.warning("store.failed", error=repr(error))
            self._try_again("storage_unavailable", "A file could not be read or written.", is_death=False)
            self._close()

    def _close(self) -> None:
        self.is_over = True
        self._progress.stop()

    def _prepare(self) -> None:
        settings, db = self._shop.settings, self._shop.db
        work = self._insist(lambda: jobs.work_of(db, self._held))
        self.assignment = self._insist(lambda: prepare(work, self._held, self._folder, db, settings))
        restore(work, self._folder, self._progress)
        states = [checkpoint.state_sha256 for checkpoint in work.checkpoints if checkpoint.state_sha256]
        kept_models = self.assignment.spec.n_checkpoints
        self._publisher = Publisher(db, self._shop.blobs, self._held, states=states, kept_models=kept_models)

    def _publish(self, report: CheckpointReport) -> None:
        try:
            self._progress.write()  # a step's metrics come before its checkpoint
            self._publisher.checkpoint(report)
        except (*STORE_ERRORS, SQLAlchemyError) as error:
            # The run is worth more than a checkpoint: the next one makes up for it.
            self._log.warning("checkpoint.unpublished", step=report.step, error=repr(error))
            message = f"The checkpoint at step {report.step} could not be stored"
            self._progress.note(Event("checkpoint_unpublished", message, level="warn", step=report.step))

    def _settle_rate(self, report: RateReport) -> None:
        """The row says it from now on: no later attempt searches again, and others may train beside this one."""
        self._insist(lambda: jobs.settle_rate(self._shop.db, self._held, report.found))
        self.assignment = self.assignment.model_copy(update={"spec": self.assignment.spec.with_rate(report.found)})

    def _settle(self, code: int, tail: Callable[[], str]) -> None:
        """What becomes of the job, by how its trainer ended it or was ended."""
        if self.stop is Stop.LOST:
            raise jobs.Fenced(self._held)
        if self.stop is Stop.CANCELLED:
            self._end(lambda: jobs.confirm_cancelled(self._shop.db, self._held))
        elif code == FINISHED and self._finished:
            self._succeed(self._finished)
        elif code == USER_ERROR and self._failed:
            self._fail(self._failed)
        elif code == NOT_FINITE:
            self._fail(self._failed or DIVERGED)
        elif self.stop in (Stop.DRAINED, Stop.PAUSED):
            self._drain()
        elif self.stop is Stop.STALLED:
            self._mourn("stalled", "The trainer made no progress for too long and was stopped.", tail())
        else:
            self._mourn("trainer_died", f"The trainer ended unexpectedly (exit code {code}).", tail())

    def _drain(self) -> None:
        if self._end(lambda: jobs.drain(self._shop.db, self._held)) == "queued":
            self._shop.ring(self.job_id)

    def _succeed(self, finished: FinishedReport) -> None:
        succeed = self._publisher.adapter(finished)
        self._insist(self._progress.write)
        results = self._insist(self._publisher.results)
        try:
            made = self._end(lambda: succeed(results))
        except jobs.CancelRequested:
            self._end(lambda: jobs.confirm_cancelled(self._shop.db, self._held))
        else:
            self._log.info("job.succeeded", model=made.name, step=finished.step)

    def _fail(self, failed: FailedReport) -> None:
        said = failed.model_dump(exclude={"kind"})
        self._end(lambda: jobs.fail(self._shop.db, self._held, **said))
        self._log.info("job.failed", code=failed.code)

    def _mourn(self, code: str, message: str, tail: str) -> None:
        self._log.error("trainer.died", code=code, log=tail)
        self._try_again(code, message, is_death=True)

    def _try_again(self, code: str, message: str, *, is_death: bool) -> None:
        base_s = self._shop.settings.retry_base_s
        state = self._end(
            lambda: jobs.requeue(
                self._shop.db, self._held, code=code, message=message, retry_base_s=base_s, is_death=is_death
            )
        )
        self._log.warning("job.requeued", code=code, state=state)

    def _end(self, write: Callable[[], Result]) -> Result:
        """The attempt's last write: what was noted comes before it, and no heartbeat after it."""
        self._insist(self._progress.write)
        self._progress.stop()
        return self._insist(write)

    def _insist(self, act: Callable[[], Result]) -> Result:
        """Try while the database is away, for as long as the lease is ours. Fenced after that."""
        while True:
            try:
                return act()
            except AWAY as error:
                self._log.warning("database.away", error=type(error).__name__)
                if self._progress.verdict is Verdict.LOST:
                    raise jobs.Fenced(self._held) from error
                time.sleep(RETRY_S)
