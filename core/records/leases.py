"""What only the holder of a job's lease may write: the moves T3 to T7 and T9 of the job machine.

A claim (T2, in claiming beside this) raises the row's lease_epoch. Every later write names the epoch it was given and
touches no row once a later claim has raised it: the writer is then Fenced, says so in an event, and must write nothing
more. Times are the database's. Each function is one transaction of its own.
"""

import enum
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.orm import Session

from core.records.database import Database, clock, now_s
from core.records.events import Event, append
from core.records.tables import Job
from core.specs.rate_search import FoundRate

POISON_DEATHS = 2  # attempts in a row that die without moving step: a third would only take another worker with it
LONGEST_RETRY_S = 900.0
JITTER = 0.2


@dataclass(frozen=True)
class Claim:
    """The right to write about a job until somebody claims it anew. attempt counts from 1.

    is_alone: it must share its trainer with no other job. So is the last attempt of each, and the one after a death
    without a step: a job is never failed by a death that another brought about.
    """

    job_id: str
    lease_epoch: int
    owner: str
    attempt: int = 1
    is_alone: bool = False


class Asked(enum.Enum):
    """What the customer wants of a running job."""

    NOTHING = enum.auto()
    TO_PAUSE = enum.auto()
    TO_CANCEL = enum.auto()


class Fenced(Exception):
    """The job was claimed anew, or has ended: whoever held this claim must stop its trainer and write nothing."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"job {claim.job_id} is no longer held with epoch {claim.lease_epoch} by {claim.owner}")
        self.claim = claim


class CancelRequested(Exception):
    """The customer asked to cancel before this could be written: confirm_cancelled is what is left to do."""


def guard(held: Claim) -> tuple[ColumnElement[bool], ...]:
    """The fence: what a row must be for the holder of a claim to write to it."""
    return Job.id == held.job_id, Job.state == "running", Job.lease_epoch == held.lease_epoch


@contextmanager
def fenced(db: Database, held: Claim) -> Iterator[Session]:
    """A transaction of the holder's; where it finds itself fenced, that fact alone is written."""
    try:
        with db.writing() as session:
            yield session
    except Fenced:
        with db.writing() as session:
            # Whoever writes events holds the job's row, so that they are seen in the order of their numbers: a reader
            # who asks for what came after the last one that he saw misses none.
            session.execute(select(Job.id).where(Job.id == held.job_id).with_for_update())
            message = f"A superseded attempt ({held.owner}) was turned away"
            append(session, held.job_id, held.lease_epoch, [Event("fenced", message, level="warn")])
        raise


def held_job(session: Session, held: Claim) -> Job:
    """The row, locked until the transaction ends. Fenced where the claim no longer holds."""
    job = session.scalars(select(Job).where(*guard(held)).with_for_update()).one_or_none()
    if job is None:
        raise Fenced(held)
    return job


def move(session: Session, held: Claim, values: Mapping[str, Any], event: Event) -> None:
    """One guarded UPDATE and its event, within the caller's transaction. Fenced where it touches no row."""
    statement = update(Job).where(*guard(held)).values(**values).returning(Job.id)
    if session.execute(statement.execution_options(synchronize_session=False)).one_or_none() is None:
        raise Fenced(held)
    append(session, held.job_id, held.lease_epoch, [event])


def beat(
    db: Database,
    held: Claim,
    *,
    lease_s: float,
    step: int | None = None,
    total_steps: int | None = None,
    trained_tokens: int | None = None,
    phase: str | None = None,
) -> Asked:
    """T3. Renew the lease and say how far the run is, in one statement; what is None stays as it was. Fenced: stop."""
    said = {"step": step, "total_steps": total_steps, "trained_tokens": trained_tokens, "phase": phase}
    values: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if step is not None:
        values["progress_at"] = case((Job.step != step, now_s()), else_=Job.progress_at)
    statement = update(Job).where(*guard(held)).values(lease_until=now_s() + lease_s, **values)
    statement = statement.execution_options(synchronize_session=False)
    with fenced(db, held) as session:
        row = session.execute(statement.returning(Job.cancel_requested_at, Job.pause_requested_at)).one_or_none()
        if row is None:
            raise Fenced(held)
    if row.cancel_requested_at is not None:
        return Asked.TO_CANCEL
    return Asked.NOTHING if row.pause_requested_at is None else Asked.TO_PAUSE


def record(db: Database, held: Claim, events: Sequence[Event]) -> None:
    """Write what happened, in order, all or nothing."""
    with fenced(db, held) as session:
        held_job(session, held)
        append(session, held.job_id, held.lease_epoch, events)


def settle_rate(db: Database, held: Claim, found: FoundRate) -> None:
    """Write the learning rate that was found into the job's spec. A death after that is of one who came somewhere."""
    with fenced(db, held) as session:
        job = held_job(session, held)
        search = {**job.spec["rate_search"], "found": found.model_dump(mode="json")}
        job.spec = {**job.spec, "learning_rate": found.rate, "rate_search": search}
        job.progress_at = clock(session)


def fail(
    db: Database,
    held: Claim,
    *,
    code: str,
    message: str,
    param: str | None = None,
    details: Sequence[Mapping[str, Any]] = (),
) -> None:
    """T6. The run cannot succeed, however often it is tried. message is for the customer."""
    with fenced(db, held) as session:
        values = failed(clock(session), code, message, param=param, details=details)
        move(session, held, values, Event("failed", message, level="error", data={"code": code}))


def requeue(
    db: Database, held: Claim, *, code: str, message: str, retry_base_s: float = 15.0, is_death: bool = True
) -> str:
    """T5. Try again after retry_base_s * 2^(attempt - 1), at most 15 minutes, give or take a fifth.

    Returns the state it came to: queued; failed with attempts_exhausted or poison; cancelled or paused where that was
    asked for.
    is_death: the trainer died of itself; False where it could not be helped (a store that is full, a network).
    """
    with fenced(db, held) as session:
        job = held_job(session, held)
        deaths = job.barren_deaths + 1 if job.progress_at is None else 0
        deaths = deaths if is_death else job.barren_deaths
        verdict = end_of(job, deaths, clock(session), message)
        if verdict is None:
            delay_s = min(LONGEST_RETRY_S, retry_base_s * 2.0 ** (job.attempt - 1))
            delay_s *= secrets.SystemRandom().uniform(1 - JITTER, 1 + JITTER)
            values = queued(clock(session) + delay_s) | {"barren_deaths": deaths}
            again = f"{message} Trying again in {delay_s:.0f} s."
            verdict = values, Event("requeued", again, level="warn", data={"code": code, "delay_s": round(delay_s, 1)})
        move(session, held, *verdict)
    return str(verdict[0]["state"])


def drain(db: Database, held: Claim) -> str:
    """T7. The trainer has checkpointed and left: to the queue again, and this attempt does not count.

    Returns queued, or cancelled or paused where that was asked for.
    """
    with fenced(db, held) as session:
        job = held_job(session, held)
        if job.cancel_requested_at is not None:
            verdict = cancelled(clock(session))
        elif job.pause_requested_at is not None:
            values, event = paused(job.step)
            verdict = values | {"attempt": job.attempt - 1}, event
        else:
            counts = {"attempt": job.attempt - 1, "preemptions": job.preemptions + 1}
            event = Event("drained", f"The worker stopped at step {job.step}; the job goes on elsewhere", step=job.step)
            verdict = queued(clock(session)) | counts, event
        move(session, held, *verdict)
    return str(verdict[0]["state"])


def confirm_cancelled(db: Database, held: Claim) -> None:
    """T9. The trainer is stopped, as the customer asked. ValueError where nobody asked."""
    with fenced(db, held) as session:
        if held_job(session, held).cancel_requested_at is None:
            raise ValueError(f"job {held.job_id} was not asked to be cancelled")
        move(session, held, *cancelled(clock(session)))


Verdict = tuple[dict[str, Any], Event]  # what becomes of a row, and what is said about it


def end_of(job: Job, deaths: int, now: float, message: str) -> Verdict | None:
    """How a job whose attempt has died must end or rest, or None where it may be tried again."""
    if job.cancel_requested_at is not None:
        return cancelled(now)
    if deaths >= POISON_DEATHS:
        code, said = "poison", f"{deaths} attempts in a row ended without one step done. The last one: {message}"
    elif job.attempt >= job.max_attempts:
        code, said = "attempts_exhausted", f"All {job.max_attempts} attempts ended early. The last one: {message}"
    elif job.pause_requested_at is not None:
        values, event = paused(job.step)
        return values | {"barren_deaths": deaths}, event
    else:
        return None
    values = failed(now, code, said) | {"barren_deaths": deaths}
    return values, Event("failed", said, level="error", data={"code": code})


def queued(run_after: float) -> dict[str, Any]:
    """The columns of a job that waits again."""
    waiting = {"state": "queued", "phase": None, "lease_owner": None, "lease_until": None}
    return waiting | {"run_after": run_after, "rings": 0, "last_rung_at": None}


def paused(step: int) -> Verdict:
    """What becomes of a job that the customer lets rest: from its last checkpoint, at most at step, it may go on."""
    resting = {"state": "paused", "phase": None, "lease_owner": None, "lease_until": None, "pause_requested_at": None}
    return resting, Event("paused", f"The job rests at step {step}; resume it whenever you like", step=step)


def ended(state: str, now: float) -> dict[str, Any]:
    """The columns of a job that has ended."""
    return {"state": state, "phase": None, "lease_owner": None, "lease_until": None, "finished_at": now}


def cancelled(now: float) -> Verdict:
    """What becomes of a job that the customer cancelled."""
    return ended("cancelled", now), Event("cancelled", "The job was cancelled")


def failed(
    now: float, code: str, message: str, *, param: str | None = None, details: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The columns of a job that failed."""
    error = {"error_code": code, "error_message": message, "error_param": param}
    return ended("failed", now) | error | {"error_details": [dict(detail) for detail in details] or None}
