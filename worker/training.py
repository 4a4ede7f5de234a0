"""One attempt at one job: supervised, published, marked. The job's row decides; this only does what it says."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    OUT_OF_MEMORY,
    USER_ERROR,
    Assignment,
    CheckpointReport,
    FailedReport,
    FinishedReport,
)
from worker.child import OWN_TRAINER, Child, environment
from worker.preparing import Refusal, prepare, restore, smaller
from worker.progress import Progress, Verdict
from worker.publishing import STORE_ERRORS, Publisher
from worker.supervision import Ending, Stop, Supervision
from worker.workdir import WorkDir

log = structlog.get_logger()

RETRY_S = 0.5
AWAY = (OperationalError, InterfaceError, PoolTimeoutError)  # a database that may be back in a moment
DIVERGED = FailedReport(code="diverged", message="The loss was no longer a number; a lower learning rate may help.")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workshop:
    """What every attempt of this worker uses. ring: the bell, for what goes on elsewhere. closing: it is time to go."""

    settings: Settings
    db: Database
    blobs: BlobStore
    ring: Callable[[str], object]
    closing: threading.Event = field(default_factory=threading.Event)


class Attempt:
    """What a claim gives the right to. The thread that runs it is its child's supervisor, to the kernel too."""

    def __init__(self, held: jobs.Claim, shop: Workshop) -> None:
        self._held, self._shop, settings = held, shop, shop.settings
        self._folder = WorkDir(settings.data_dir, held.job_id, held.lease_epoch, shop.blobs)
        self._child: Child | None = None
        self._progress = Progress(
            shop.db, held, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s, on_lost=self._kill_child
        )
        self._log = log.bind(job_id=held.job_id, lease_epoch=held.lease_epoch)

    def run(self) -> None:
        """Returns when the job has moved on, or is another's. What it raises leaves the job to its lease's end."""
        self._log.info("job.claimed", attempt=self._held.attempt, owner=self._held.owner)
        try:
            with self._progress:
                self._work()
        except jobs.Fenced:
            self._log.warning("job.fenced")
        finally:
            self._folder.close()

    def _work(self) -> None:
        try:
            work = self._insist(lambda: jobs.work_of(self._shop.db, self._held))
            self._train(work)
        except Refusal as refusal:
            self._fail(FailedReport(code=refusal.code, message=str(refusal), param=refusal.param))
        except STORE_ERRORS as error:
            self._log.warning("store.failed", error=repr(error))
            self._try_again("storage_unavailable", "A file could not be read or written.", is_death=False)

    def _train(self, work: jobs.Work) -> None:
        settings, db = self._shop.settings, self._shop.db
        assignment = self._insist(lambda: prepare(work, self._held, self._folder, db, settings))
        restore(work, self._folder, self._progress)
        states = [checkpoint.state_sha256 for checkpoint in work.checkpoints if checkpoint.state_sha256]
        kept_models = assignment.spec.n_checkpoints
        publisher = Publisher(db, self._shop.blobs, self._held, states=states, kept_models=kept_models)
        ending = self._supervised(assignment, publisher)
        while ending.stop is None and ending.exit_code == OUT_OF_MEMORY:
            assignment = smaller(assignment, self._progress)
            ending = self._supervised(assignment, publisher)
        self._settle(ending, publisher)

    def _supervised(self, assignment: Assignment, publisher: Publisher) -> Ending:
        shop = self._shop
        command = shop.settings.trainer_command or OWN_TRAINER
        env = environment(shop.settings, os.environ)
        self._child = child = Child(command, assignment, env=env, log_file=self._folder.log_file)
        self._log.info("child.started", pid=child.pid, tokens_per_batch=assignment.spec.tokens_per_batch)
        ending = Supervision(
            child,
            self._progress,
            lambda report: self._publish(report, publisher),
            closing=shop.closing,
            settings=shop.settings,
        ).run()
        self._log.info("child.ended", pid=child.pid, exit_code=ending.exit_code, stop=ending.stop and ending.stop.name)
        return ending

    def _publish(self, report: CheckpointReport, publisher: Publisher) -> None:
        try:
            self._progress.write()  # a step's metrics come before its checkpoint
            publisher.checkpoint(report)
        except (*STORE_ERRORS, SQLAlchemyError) as error:
            # The run is worth more than a checkpoint: the next one makes up for it.
            self._log.warning("checkpoint.unpublished", step=report.step, error=repr(error))
            message = f"The checkpoint at step {report.step} could not be stored"
            self._progress.note(Event("checkpoint_unpublished", message, level="warn", step=report.step))

    def _kill_child(self) -> None:
        if self._child is not None:
            self._child.kill()

    def _settle(self, ending: Ending, publisher: Publisher) -> None:
        """What becomes of the job, now that its trainer is dead."""
        if ending.stop is Stop.LOST:
            raise jobs.Fenced(self._held)
        if ending.stop is Stop.CANCELLED:
            self._end(lambda: jobs.confirm_cancelled(self._shop.db, self._held))
        elif ending.exit_code == FINISHED and ending.finished:
            self._succeed(ending.finished, publisher)
        elif ending.exit_code == USER_ERROR and ending.failed:
            self._fail(ending.failed)
        elif ending.exit_code == NOT_FINITE:
            self._fail(ending.failed or DIVERGED)
        elif ending.stop is Stop.DRAINED:
            self._end(lambda: jobs.drain(self._shop.db, self._held))
            self._shop.ring(self._held.job_id)
        elif ending.stop is Stop.STALLED:
            self._mourn("stalled", "The trainer made no progress for too long and was stopped.")
        else:
            self._mourn("trainer_died", f"The trainer ended unexpectedly (exit code {ending.exit_code}).")

    def _succeed(self, finished: FinishedReport, publisher: Publisher) -> None:
        succeed = publisher.adapter(finished)
        self._insist(self._progress.write)
        results = self._insist(publisher.results)
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

    def _mourn(self, code: str, message: str) -> None:
        self._log.error("trainer.died", code=code, log=self._child.tail() if self._child else "")
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
