"""What a run leaves behind: from the work folder into the blob store, and only then into the records.

A crash between the two leaves a blob that no row names, which is waste and nothing worse. Knows no child.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
from obstore.exceptions import BaseError
from sqlalchemy import select

from core.blobs import Blob, BlobStore, CorruptBlob, blob_of
from core.records import jobs
from core.records.database import Database
from core.records.tables import Adapter, Checkpoint, JobEvent
from core.specs.assignment import CheckpointReport, FinishedReport
from worker.failpoints import reached
from worker.packing import pack
from worker.results import results_csv

log = structlog.get_logger()

STORE_ERRORS = (OSError, BaseError, CorruptBlob)  # what a full disk, a network or a bad disk does to a store
KEPT_STATES = 2


class Publisher:
    """Of one attempt. states: sha256 of the job's packed checkpoints in the store. kept_models: of its checkpoints."""

    def __init__(
        self, db: Database, blobs: BlobStore, held: jobs.Claim, *, states: Iterable[str], kept_models: int
    ) -> None:
        self._db, self._blobs, self._held = db, blobs, held
        self._states = set(states)
        self._kept_models = kept_models

    def checkpoint(self, report: CheckpointReport) -> None:
        """Remember a checkpoint. Fenced, SQLAlchemyError and STORE_ERRORS pass; then nothing points to half of it."""
        packed = report.path.with_suffix(".zip")
        try:
            # The claim in the file makes its bytes this attempt's own, so that dropping it takes it from nobody else.
            owner = f"{self._held.job_id} {self._held.lease_epoch} {report.step}"
            state = self._put(pack(report.path, packed, owner))
        finally:
            packed.unlink(missing_ok=True)
        adapter = self._put(report.adapter) if report.adapter else None
        reached("checkpoint_stored", self._held.lease_epoch)
        jobs.record_checkpoint(
            self._db,
            self._held,
            step=report.step,
            metrics=report.metrics,
            state=state,
            adapter=adapter,
            keep_states=KEPT_STATES,
            keep_models=self._kept_models,
            keep_step=report.best_step,
        )
        self._states.add(state.sha256)
        self._drop_states()

    def _drop_states(self) -> None:
        """Delete what the records have let go of. A crash before leaves waste, nothing worse."""
        named = select(Checkpoint.state_sha256).where(Checkpoint.job_id == self._held.job_id)
        with self._db.session() as session:
            dropped = self._states - set(session.scalars(named))
        for sha256 in dropped:
            try:
                self._blobs.delete(sha256)
            except STORE_ERRORS as error:
                log.warning("state.undeleted", job_id=self._held.job_id, sha256=sha256, error=type(error).__name__)
        self._states -= dropped

    def results(self) -> Blob:
        """The result file, of all the metrics written so far."""
        mine = select(JobEvent.event_data).where(JobEvent.job_id == self._held.job_id, JobEvent.type == "metrics")
        with self._db.session() as session:
            said = [metrics for metrics in session.scalars(mine.order_by(JobEvent.id)) if metrics]
        return self._blobs.put_bytes(results_csv(said))

    def adapter(self, report: FinishedReport) -> Callable[[Blob], Adapter]:
        """Put the finished adapter into the store; what is returned ends the job with it and its result file."""
        adapter = self._put(report.adapter)
        reached("adapter_stored", self._held.lease_epoch)

        def succeed(results: Blob) -> Adapter:
            made = jobs.succeed(
                self._db,
                self._held,
                adapter=adapter,
                peft_type=str(report.details.get("peft_type", "")),
                details={**report.details, "metrics": report.metrics},
                step=report.step,
                trained_tokens=report.trained_tokens,
                results=results,
                outcome=report.outcome.model_dump() if report.outcome else None,
                measured=_measured(report),
            )
            reached("succeeded", self._held.lease_epoch)
            return made

        return succeed

    def _put(self, path: Path) -> Blob:
        """Publish a file, and see that what is in the store is it."""
        blob = self._blobs.put(path)
        if blob != blob_of(path) or self._blobs.size(blob.sha256) != blob.size_bytes:
            raise CorruptBlob(f"{path.name} changed while it was stored")
        return blob


def _measured(report: FinishedReport) -> dict[str, int | float | None] | None:
    """What the trainer knows of it; None of one that does not say."""
    if report.memory_bytes is None:
        return None
    return {"memory_bytes": report.memory_bytes, "tokens_per_s": report.tokens_per_s}
