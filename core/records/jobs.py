"""Jobs: how they are made, found and cancelled, and the one door to all moves of the job machine.

The other moves are in claiming, leases, finishing and sweeper beside this. A row moves only as they say; once it has
ended, the database itself keeps it as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.records import audit, datasets
from core.records.claiming import Kin, claim, claim_kin, keeps_alike
from core.records.database import Database, clock
from core.records.events import Event, append
from core.records.finishing import record_checkpoint, succeed
from core.records.leases import (
    Asked,
    CancelRequested,
    Claim,
    Fenced,
    beat,
    cancelled,
    confirm_cancelled,
    drain,
    fail,
    guard,
    record,
    requeue,
    settle_rate,
)
from core.records.pages import Page, page
from core.records.pausing import NotPausable, NotResumable, pause, resume
from core.records.scope import Account, of
from core.records.sweeper import mark_rung, sweep
from core.records.tables import TERMINAL_STATES, Checkpoint, File, Job, JobEvent, new_id
from core.specs.training import TrainSpec

__all__ = [
    "Asked",
    "CancelRequested",
    "Claim",
    "Event",
    "Fenced",
    "Kin",
    "NotCancellable",
    "NotPausable",
    "NotResumable",
    "NotRetryable",
    "Work",
    "beat",
    "cancel",
    "checkpoints",
    "claim",
    "claim_kin",
    "confirm_cancelled",
    "create",
    "drain",
    "events",
    "events_behind",
    "fail",
    "find",
    "listed",
    "mark_rung",
    "paces",
    "pause",
    "record",
    "record_checkpoint",
    "requeue",
    "resume",
    "retry",
    "settle_rate",
    "succeed",
    "sweep",
    "work_of",
]


class NotCancellable(ValueError):
    """The job has ended, so there is nothing to cancel."""


class NotRetryable(ValueError):
    """The job has not ended, so there is nothing to try again."""


@dataclass(frozen=True)
class Work:
    """All that a worker needs to know of a job that it holds. checkpoints: those with a state, newest step first."""

    job: Job
    training_file: File
    validation_file: File | None
    checkpoints: Sequence[Checkpoint]


def create(
    session: Session,
    account: Account,
    *,
    spec: TrainSpec,
    request: Mapping[str, Any],
    training_file_id: str,
    validation_file_id: str | None = None,
    suffix: str | None = None,
    metadata: Mapping[str, str] | None = None,
    max_attempts: int = 3,
    retry_of: str | None = None,
    estimate: Mapping[str, Any] | None = None,
) -> Job:
    """T1. A queued job and its first event; the caller commits, then rings. LookupError names a missing file."""
    for file_id in filter(None, (training_file_id, validation_file_id)):
        if datasets.find(session, account, file_id) is None:
            raise LookupError(f"no file {file_id!r}")
    now = clock(session)
    job = Job(
        id=new_id("ftjob-"),
        organization_id=account.organization_id,
        project_id=account.project_id,
        state="queued",
        base_model=spec.base_model,
        spec=spec.model_dump(mode="json"),
        request=dict(request),
        suffix=suffix,
        job_metadata=None if metadata is None else dict(metadata),
        seed=spec.seed,
        training_file_id=training_file_id,
        validation_file_id=validation_file_id,
        max_attempts=max_attempts,
        retry_of=retry_of,
        estimate=None if estimate is None else dict(estimate),
        run_after=now,
        created_at=now,
    )
    session.add(job)
    session.flush()
    append(session, job.id, 0, [Event("created", f"Created fine-tuning job {job.id}")])
    return job


def retry(
    session: Session, account: Account, of_job: Job, *, max_attempts: int, estimate: Mapping[str, Any] | None = None
) -> Job:
    """T1 for the same run once more: every value of the account's job, its seed too, so that it says of whom it is.

    NotRetryable where the job has not ended. LookupError names a missing file.
    """
    if of_job.state not in TERMINAL_STATES:
        raise NotRetryable(f"job {of_job.id} has not ended ({of_job.state}): there is nothing to try again")
    again = create(
        session,
        account,
        spec=TrainSpec.model_validate(of_job.spec),
        request=of_job.request,
        training_file_id=of_job.training_file_id,
        validation_file_id=of_job.validation_file_id,
        suffix=of_job.suffix,
        metadata=of_job.job_metadata,
        max_attempts=max_attempts,
        retry_of=of_job.id,
        estimate=estimate,
    )
    audit.note(session, account, "job.retried", of_job.id)
    append(session, again.id, 0, [Event("retry", f"The same once more as {of_job.id}", data={"retry_of": of_job.id})])
    return again


def find(session: Session, account: Account, job_id: str) -> Job | None:
    """The account's job."""
    return session.scalars(select(Job).where(Job.id == job_id, *of(Job, account))).one_or_none()


def listed(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[Job]:
    """The account's jobs, newest first."""
    return page(session, select(Job).where(*of(Job, account)), [Job.created_at, Job.id], after=after, limit=limit)


def cancel(session: Session, account: Account, job_id: str) -> Job | None:
    """T8. A job that waits is cancelled at once; a running one is asked to, and its worker or the sweeper confirms.

    Asking twice is asking once. None where the account has no such job; NotCancellable where it has ended.
    """
    job = session.scalars(select(Job).where(Job.id == job_id, *of(Job, account)).with_for_update()).one_or_none()
    if job is None:
        return None
    if job.state in TERMINAL_STATES:
        raise NotCancellable(f"job {job.id} has ended ({job.state}): there is nothing to cancel")
    if job.cancel_requested_at is not None:
        return job
    now = clock(session)
    job.cancel_requested_at = now
    event = Event("cancel_requested", "Cancellation was asked for")
    if job.state != "running":
        values, event = cancelled(now)
        for name, value in values.items():
            setattr(job, name, value)
    audit.note(session, account, "job.cancelled", job.id)
    session.flush()
    append(session, job.id, job.lease_epoch, [event])
    return job


def events(
    session: Session, account: Account, job_id: str, *, after: int | None = None, limit: int = 20
) -> Page[JobEvent]:
    """What happened to the account's job, newest first. Empty where the account has no such job."""
    mine = select(JobEvent).join(Job, Job.id == JobEvent.job_id).where(Job.id == job_id, *of(Job, account))
    return page(session, mine, [JobEvent.id], after=after, limit=limit)


def events_behind(
    session: Session, account: Account, job_id: str, number: int, *, limit: int = 100
) -> Sequence[JobEvent]:
    """What happened to the account's job behind the event of that number, oldest first."""
    mine = select(JobEvent).join(Job, Job.id == JobEvent.job_id).where(Job.id == job_id, *of(Job, account))
    return session.scalars(mine.where(JobEvent.id > number).order_by(JobEvent.id).limit(limit)).all()


def checkpoints(
    session: Session, account: Account, job_id: str, *, after: str | None = None, limit: int = 10
) -> Page[Checkpoint]:
    """The checkpoints of the account's job that can be used as models, newest step first."""
    mine = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(Job.id == job_id, *of(Job, account))
    usable = mine.where(Checkpoint.model_name.is_not(None))
    return page(session, usable, [Checkpoint.step, Checkpoint.id], after=after, limit=limit)


def paces(session: Session, spec: TrainSpec, *, newest: int) -> list[float]:
    """Tokens a second of the newest jobs of this base, method and precision, whoever's: it is a machine's figure.

    Only of jobs that read each token as often: of pairs if it learns from pairs, and with checkpointing alike.
    """
    is_done = (Job.base_model == spec.base_model, Job.state == "succeeded", Job.measured.is_not(None))
    beta = Job.spec["dpo"]["beta"].as_float()
    of_kind = select(Job.measured).where(
        *is_done,
        Job.spec["method"]["type"].as_string() == spec.method.type,
        Job.spec["method"]["base_precision"].as_string() == spec.method.base_precision,
        beta.is_not(None) if spec.dpo else beta.is_(None),
        keeps_alike(spec),
    )
    found = session.scalars(of_kind.order_by(Job.finished_at.desc()).limit(newest))
    return [float(said["tokens_per_s"]) for said in found if said and said.get("tokens_per_s")]


def work_of(db: Database, held: Claim) -> Work:
    """What the holder of a claim is to do. Fenced where it holds no longer."""
    with db.session() as session:
        job = session.scalars(select(Job).where(*guard(held))).one_or_none()
        if job is None:
            raise Fenced(held)
        resumable = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.state_sha256.is_not(None))
        return Work(
            job=job,
            training_file=session.get_one(File, job.training_file_id),
            validation_file=session.get_one(File, job.validation_file_id) if job.validation_file_id else None,
            checkpoints=session.scalars(resumable.order_by(Checkpoint.step.desc())).all(),
        )
