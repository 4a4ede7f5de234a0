"""What waits for a trainer, at which place and for how long; what runs, rests, and was given up."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.records.database import now_s
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import Job

GIVEN_UP = ("attempts_exhausted", "poison")  # why a job failed without a word of its own


@dataclass(frozen=True)
class Place:
    """Of a waiting job. position: from 1, among all jobs of the installation, in the order in which they are taken.

    waits_s: since it could be taken; below zero, until it can be (a job that is tried again waits a while first).
    """

    position: int
    waits_s: float


def places(session: Session, job_ids: Collection[str]) -> dict[str, Place]:
    """Those of these jobs that wait. Scoped by who asks for them: ids are the caller's own."""
    if not job_ids:
        return {}
    number = func.row_number().over(order_by=(Job.created_at, Job.id)).label("number")
    waits = (now_s() - Job.run_after).label("waits")
    queue = select(Job.id, number, waits).where(Job.state == "queued").subquery()
    rows = session.execute(select(queue.c.id, queue.c.number, queue.c.waits).where(queue.c.id.in_(job_ids)))
    return {job_id: Place(position, waits_s) for job_id, position, waits_s in rows}


def counted(session: Session, account: Account) -> dict[str, int]:
    """How many jobs of the account are in which state, of those that have not ended."""
    states = select(Job.state, func.count()).where(*of(Job, account), Job.finished_at.is_(None)).group_by(Job.state)
    return {state: n for state, n in session.execute(states)}  # noqa: C416  # rows, which dict() takes for sequences


def listed(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[Job]:
    """The account's jobs that have not ended, in the order in which they are taken."""
    alive = select(Job).where(*of(Job, account), Job.finished_at.is_(None))
    return page(session, alive, [Job.created_at, Job.id], after=after, limit=limit, is_ascending=True)


def dead_letters(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[Job]:
    """The account's jobs that were given up, newest first: their attempts died, which nothing in them explains."""
    given_up = select(Job).where(*of(Job, account), Job.state == "failed", Job.error_code.in_(GIVEN_UP))
    return page(session, given_up, [Job.created_at, Job.id], after=after, limit=limit)


def retried(session: Session, account: Account, job_ids: Collection[str]) -> dict[str, str]:
    """Those of these jobs that were tried once more, each with the newest job that does so."""
    again = select(Job.retry_of, Job.id).where(*of(Job, account), Job.retry_of.in_(job_ids)).order_by(Job.created_at)
    return {before or "": job_id for before, job_id in session.execute(again)}
