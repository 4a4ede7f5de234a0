"""What a trainer child is told: the job's files fetched, its checkpoints restored, its spec cut to what memory bears.

Knows no child. A Refusal is for the customer and ends the job.
"""

from pathlib import Path

import structlog
from sqlalchemy import select

from core.base.catalogue import UnknownBaseModel, UnusableBaseModel, entry
from core.blobs import MissingBlob
from core.records import jobs
from core.records.database import Database
from core.records.events import Event
from core.records.tables import File, JobEvent
from core.settings import Settings
from core.specs.assignment import Assignment, BaseModelEntry
from core.specs.training import TrainSpec
from worker.progress import Progress
from worker.workdir import WorkDir

log = structlog.get_logger()

FEWEST_TOKENS = 64  # as core/shortage.py has it, which needs torch
OUT_OF_MEMORY = "out_of_memory"


class Refusal(Exception):
    """The job cannot be done, here or elsewhere. The message is for the customer."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def prepare(work: jobs.Work, held: jobs.Claim, folder: WorkDir, db: Database, settings: Settings) -> Assignment:
    """Fill an empty folder. Raises Refusal, SQLAlchemyError, and what a blob store raises."""
    folder.open()
    spec = TrainSpec.model_validate(work.job.spec)
    return Assignment(
        job_id=held.job_id,
        lease_epoch=held.lease_epoch,
        spec=spec.model_copy(update={"tokens_per_batch": _tokens_that_fit(db, held.job_id, spec)}),
        base=_base(settings, spec.base_model),
        training_file=_fetched(folder, work.training_file, "training_file"),
        validation_file=_fetched(folder, work.validation_file, "validation_file") if work.validation_file else None,
        training_file_id=work.training_file.id,
        validation_file_id=work.validation_file.id if work.validation_file else None,
        init_adapter=_start(folder, spec),
        continue_from=_continued(folder, spec),
        work_dir=folder.path,
        cache_dir=settings.cache_dir,
    )


def restore(work: jobs.Work, folder: WorkDir, progress: Progress) -> None:
    """Bring back what earlier attempts saved; what is damaged is said, and done without."""
    states = [checkpoint.state_sha256 for checkpoint in work.checkpoints if checkpoint.state_sha256]
    for sha256 in folder.restore(states):
        log.warning("checkpoint.unusable", job_id=work.job.id, sha256=sha256)
        message = "A checkpoint is damaged; going on from the one before it"
        progress.note(Event("checkpoint_unusable", message, level="warn"))


def smaller(assignment: Assignment, progress: Progress) -> Assignment:
    """The same run with half the tokens in a forward: what a step learns stays the same. Refusal at the floor."""
    tokens = assignment.spec.tokens_per_batch
    if tokens <= FEWEST_TOKENS:
        message = f"Memory is not enough for this model and method, even with {tokens} tokens at a time."
        raise Refusal(OUT_OF_MEMORY, message, "training.tokens_per_batch")
    fewer = max(FEWEST_TOKENS, tokens // 2)
    message = f"Memory was not enough for {tokens} tokens at a time; going on with {fewer}"
    progress.note(Event(OUT_OF_MEMORY, message, level="warn", data={"tokens_per_batch": fewer}))
    spec = assignment.spec.model_copy(update={"tokens_per_batch": fewer})
    return assignment.model_copy(update={"spec": spec})


def _tokens_that_fit(db: Database, job_id: str, spec: TrainSpec) -> int:
    """As many as the customer wants, but for what earlier attempts found to be too many."""
    found = select(JobEvent.event_data).where(JobEvent.job_id == job_id, JobEvent.kind == OUT_OF_MEMORY)
    with db.session() as session:
        fitting = [int(said["tokens_per_batch"]) for said in session.scalars(found) if said]
    return min([spec.tokens_per_batch, *fitting])


def _fetched(folder: WorkDir, file: File, name: str) -> Path:
    try:
        return folder.fetch(file.blob_sha256, f"{name}.jsonl")
    except MissingBlob:
        raise Refusal("file_missing", f"The content of {file.id} is no longer there.", name) from None


def _start(folder: WorkDir, spec: TrainSpec) -> Path | None:
    if spec.init_adapter_sha256 is None:
        return None
    try:
        return folder.fetch(spec.init_adapter_sha256, "init_adapter.zip")
    except MissingBlob:
        message = f"The content of {spec.method.starts_from} is no longer there."
        raise Refusal("init_adapter_missing", message, "peft.init_adapter") from None


def _continued(folder: WorkDir, spec: TrainSpec) -> Path | None:
    if spec.continue_from_sha256 is None:
        return None
    try:
        return folder.fetch(spec.continue_from_sha256, "continue_from.zip")
    except MissingBlob:
        message = f"The content of {spec.continue_from} is no longer there."
        raise Refusal("continue_from_missing", message, "continue_from") from None


def _base(settings: Settings, base_model: str) -> BaseModelEntry:
    try:
        return entry(settings.base_models, base_model)
    except (UnknownBaseModel, UnusableBaseModel) as error:
        message = f"This service no longer offers the base model {base_model!r}."
        raise Refusal("base_model_unavailable", message, "model") from error
