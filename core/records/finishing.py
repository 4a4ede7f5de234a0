"""What a run leaves behind: its checkpoints and, once, its adapter. The blobs are stored before."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.blobs import Blob
from core.records import aliases
from core.records.database import Database, clock
from core.records.events import Event, append
from core.records.leases import CancelRequested, Claim, ended, fenced, held_job, move
from core.records.names import checkpoint_name, model_name
from core.records.tables import Adapter, Checkpoint, File, Job, Organization, new_id


def record_checkpoint(
    db: Database,
    held: Claim,
    *,
    step: int,
    metrics: Mapping[str, float],
    state: Blob | None = None,
    adapter: Blob | None = None,
    keep_states: int = 2,
    keep_models: int = 3,
    keep_step: int | None = None,
) -> Checkpoint:
    """Remember a step: state to go on from it, adapter to serve it. A step that an earlier attempt reached is replaced.

    Of all the job's checkpoints the newest keep_states keep their state and the newest keep_models their adapter, and
    beside them that of keep_step.
    """
    with fenced(db, held) as session:
        job = held_job(session, held)
        found = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == step))
        row = found.one_or_none() or Checkpoint(id=new_id("ftckpt_"), job_id=job.id, step=step)
        row.lease_epoch, row.metrics, row.created_at = held.lease_epoch, dict(metrics), clock(session)
        row.state_sha256, row.state_bytes = (state.sha256, state.size_bytes) if state else (None, None)
        row.adapter_sha256, row.adapter_bytes = (adapter.sha256, adapter.size_bytes) if adapter else (None, None)
        row.model_name = checkpoint_name(_name_of(session, job), step) if adapter else None
        session.add(row)
        session.flush()
        _thin(session, job, keep_states, keep_models, keep_step)
        event = Event("checkpoint", f"Checkpoint at step {step}", step=step, data={"checkpoint_id": row.id})
        append(session, job.id, held.lease_epoch, [event])
    return row


def _thin(session: Session, job: Job, keep_states: int, keep_models: int, keep_step: int | None) -> None:
    rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc())).all()
    for row in [row for row in rows if row.state_sha256][keep_states:]:
        row.state_sha256 = row.state_bytes = None
    for row in [row for row in rows if row.model_name and row.step != keep_step][keep_models:]:
        row.model_name = row.adapter_sha256 = row.adapter_bytes = None


def succeed(
    db: Database,
    held: Claim,
    *,
    adapter: Blob,
    peft_type: str,
    details: Mapping[str, Any],
    step: int,
    trained_tokens: int,
    results: Blob | None = None,
    outcome: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Adapter:
    """T4. The job has succeeded: its adapter, its result file if given, the row and the event, all or nothing.

    outcome: as core.specs.assignment.Outcome says, of the row; measured: as core.specs.estimate.Measured, but for the
    seconds, which are of the row.
    CancelRequested where the customer was faster: nothing is written then. Fenced as everywhere.
    """
    with fenced(db, held) as session:
        job = held_job(session, held)
        if job.cancel_requested_at is not None:
            raise CancelRequested(f"job {job.id} was asked to be cancelled before it succeeded")
        now = clock(session)
        row = _adapter_row(session, job, adapter, now)
        row.peft_type, row.details = peft_type, dict(details)
        file = None if results is None else _result_file(job, results, now)
        session.add_all([row] if file is None else [row, file])
        session.flush()
        took = {"seconds": now - (job.started_at or now), "adapter_bytes": adapter.size_bytes}
        progress = {
            "step": step,
            "trained_tokens": trained_tokens,
            "result_file_id": file.id if file else None,
            "outcome": None if outcome is None else dict(outcome),
            "measured": None if measured is None else {**measured, **took},
        }
        event = Event("succeeded", f"The job has succeeded: {row.name}", step=step, data={"model": row.name})
        move(session, held, ended("succeeded", now) | progress, event)
    return row


def _adapter_row(session: Session, job: Job, blob: Blob, now: float) -> Adapter:
    family, version = aliases.number(session, job.project_id, job.suffix)
    return Adapter(
        id=new_id("adapter-"),
        organization_id=job.organization_id,
        project_id=job.project_id,
        name=_name_of(session, job),
        family=family,
        version=version,
        job_id=job.id,
        base_model=job.base_model,
        blob_sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        created_at=now,
    )


def _result_file(job: Job, blob: Blob, now: float) -> File:
    return File(
        id=new_id("file-"),
        organization_id=job.organization_id,
        project_id=job.project_id,
        filename="step_metrics.csv",
        purpose="fine-tune-results",
        size_bytes=blob.size_bytes,
        blob_sha256=blob.sha256,
        status="processed",
        created_at=now,
    )


def _name_of(session: Session, job: Job) -> str:
    organization = session.get_one(Organization, job.organization_id)
    return model_name(job.base_model, organization.slug, job.suffix, job.id)
