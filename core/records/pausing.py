"""A job that rests because its owner says so: the moves T10 (pause) and T11 (resume) of the job machine.

A running job is only asked to: its worker saves a checkpoint and lets it go (drain, in leases beside this), or, where
the worker is lost, the sweeper does. Until then the wish can be taken back.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.records import audit
from core.records.database import clock
from core.records.events import Event, append
from core.records.leases import paused, queued
from core.records.scope import Account, of
from core.records.tables import TERMINAL_STATES, Job


class NotPausable(ValueError):
    """The job has ended, or is about to be cancelled: it cannot rest."""


class NotResumable(ValueError):
    """The job does not rest, so there is nothing to resume."""


def pause(session: Session, account: Account, job_id: str) -> Job | None:
    """T10. A job that waits rests at once; a running one is asked to, and its worker or the sweeper confirms.

    Asking twice is asking once. None where the account has no such job; NotPausable where it cannot.
    """
    job = _locked(session, account, job_id)
    if job is None:
        return None
    if job.state in TERMINAL_STATES:
        raise NotPausable(f"job {job.id} has ended ({job.state}): there is nothing to pause")
    if job.state == "paused" or job.pause_requested_at is not None:
        return job
    if job.cancel_requested_at is not None:
        raise NotPausable(f"job {job.id} is about to be cancelled: it cannot be paused")
    if job.state == "running":
        job.pause_requested_at = clock(session)
        event = Event("pause_requested", "A pause was asked for")
    else:
        values, event = paused(job.step)
        _set(job, values)
    return _told(session, account, job, "job.paused", event)


def resume(session: Session, account: Account, job_id: str) -> Job | None:
    """T11. A job that rests waits again, at the place that its age gives it; a wish to rest that stands is taken back.

    None where the account has no such job; NotResumable where it does neither.
    """
    job = _locked(session, account, job_id)
    if job is None:
        return None
    if job.state in TERMINAL_STATES:
        raise NotResumable(f"job {job.id} has ended ({job.state}): make a new one of it with retry")
    if job.state == "paused":
        _set(job, queued(clock(session)))
    elif job.pause_requested_at is None:
        raise NotResumable(f"job {job.id} does not rest ({job.state}): there is nothing to resume")
    job.pause_requested_at = None
    return _told(session, account, job, "job.resumed", Event("resumed", "The job was resumed", step=job.step))


def _locked(session: Session, account: Account, job_id: str) -> Job | None:
    mine = select(Job).where(Job.id == job_id, *of(Job, account)).with_for_update()
    return session.scalars(mine).one_or_none()


def _told(session: Session, account: Account, job: Job, action: str, event: Event) -> Job:
    audit.note(session, account, action, job.id)
    session.flush()
    append(session, job.id, job.lease_epoch, [event])
    return job


def _set(job: Job, values: dict[str, object]) -> None:
    for name, value in values.items():
        setattr(job, name, value)
