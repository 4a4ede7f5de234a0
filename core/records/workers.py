"""Who is at work, on what, and since when; and the wish that one of them take no more.

A worker reads that wish with its next beat. An engine then lets its rows end; a trainer's jobs are drained and go on
elsewhere. Either stays, idle, until it is stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.records import audit
from core.records.database import clock, now_s
from core.records.presences import STALE_S
from core.records.scope import Account, of
from core.records.tables import Job, Presence


@dataclass(frozen=True)
class Worker:
    """What it says of itself, and seconds since its last word. job_ids: of its n_jobs those that the asker may see."""

    presence: Presence
    silent_s: float
    job_ids: Sequence[str]
    n_jobs: int


def living(session: Session, account: Account) -> list[Worker]:
    """All workers of the installation that spoke lately: engines, then trainers, each oldest first."""
    lately = select(Presence, now_s() - Presence.beat_at).where(Presence.beat_at > now_s() - STALE_S)
    found = session.execute(lately.order_by(Presence.role, Presence.started_at, Presence.id)).all()
    running = Job.state == "running"
    counts = select(Job.lease_owner, func.count()).where(running).group_by(Job.lease_owner)
    n_jobs = {owner: n for owner, n in session.execute(counts)}  # noqa: C416  # rows, which dict() takes for sequences
    own = select(Job.lease_owner, Job.id).where(running, *of(Job, account)).order_by(Job.created_at, Job.id)
    job_ids = dict[str | None, list[str]]()
    for owner, job_id in session.execute(own):
        job_ids.setdefault(owner, []).append(job_id)
    return [
        Worker(presence, max(0.0, silent_s), job_ids.get(_owner(presence), []), n_jobs.get(_owner(presence), 0))
        for presence, silent_s in found
    ]


def ask_to_drain(session: Session, account: Account, worker_id: str) -> bool:
    """Let a living worker take no more work. Asking twice is asking once. False where there is none of that id."""
    lately = select(Presence).where(Presence.id == worker_id, Presence.beat_at > now_s() - STALE_S).with_for_update()
    row = session.scalars(lately).one_or_none()
    if row is None:
        return False
    if row.drain_requested_at is None:
        row.drain_requested_at = clock(session)
        audit.note(session, account, "worker.drained", row.id)
    return True


def _owner(presence: Presence) -> str:
    """As whom a trainer claims jobs; an engine claims none."""
    return str(presence.details.get("owner", ""))
