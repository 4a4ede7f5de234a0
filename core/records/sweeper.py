"""The sweeper: who brings to an end what no worker will, and says for which jobs the bell is to be rung again.

One process at a time holds the office; a second one that sweeps does no harm, it only finds nothing to do.
"""

import os
import platform
import secrets
import threading
from collections.abc import Callable

import structlog
from sqlalchemy import and_, case, delete, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from core.records import offices
from core.records.claiming import claimable
from core.records.database import Database, clock, now_s
from core.records.leases import Claim, end_of, move
from core.records.presences import alive
from core.records.tables import Idempotency, Job, Leader, Presence
from core.settings import Settings

log = structlog.get_logger()

OFFICE = "sweeper"
TERM_S = 20.0  # how long the office is kept without a sweep
FORGET_S = 3600.0  # a presence this old says nothing any more
RING_AGAIN_S = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0)  # how long a job waits for its next ring, by how often it was rung
ROUNDS_PER_TERM = 4  # so that a slow round does not cost the office
SPARE_BELLS = 16  # rung beyond what the living trainers can take at once
BATCH = 100  # jobs that one sweep ends: a sweep stays short, and the next one goes on


def sweep(db: Database, *, owner: str, most: int = 16, term_s: float = TERM_S) -> list[str]:
    """End running jobs of dead workers that must end, and return the ids of the jobs to ring for, oldest first.

    Rung are jobs that may run and were never rung, or not within 5, 10, 20, 40, then 60 s. At most `most` of them (idle
    workers + 16), so that the broker is never filled. A job whose lease is over is one of them: the claim itself takes
    it over. Empty where another process holds the office.
    """
    with db.writing() as session:
        if not offices.take(session, OFFICE, owner, term_s):
            return []
        _end_the_dead(session, owner)
        session.execute(delete(Idempotency).where(Idempotency.expires_at < now_s()))
        session.execute(delete(Presence).where(Presence.beat_at < now_s() - FORGET_S))
        return _to_ring(session, most)


def resign(db: Database, *, owner: str) -> None:
    """Give up the office, so that the next process need not wait for the term to end."""
    with db.writing() as session:
        session.execute(delete(Leader).where(Leader.office == OFFICE, Leader.owner == owner))


class Sweeper:
    """Sweeps every settings.sweep_s in a thread of its own and rings. ring answers whether the broker took the bell."""

    def __init__(self, db: Database, ring: Callable[[str], object], settings: Settings) -> None:
        self._db = db
        self._ring = ring
        self._sweep_s = settings.sweep_s
        self._owner = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Sweep for the first time, soon."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the round and give up the office. Idempotent; the sweeper cannot be started again."""
        is_first = not self._is_over.is_set()
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        if is_first:
            self._guarded(lambda: resign(self._db, owner=self._owner))

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._guarded(self._round)
            self._is_over.wait(self._sweep_s)

    def _guarded(self, act: Callable[[], None]) -> None:
        """A database that is away costs a round, not the sweeper."""
        try:
            act()
        except SQLAlchemyError as error:
            log.warning("sweep.failed", error=type(error).__name__)

    def _round(self) -> None:
        with self._db.session() as session:
            most = len(alive(session, "trainer")) + SPARE_BELLS
        for job_id in sweep(self._db, owner=self._owner, most=most, term_s=ROUNDS_PER_TERM * self._sweep_s):
            if self._ring(job_id) is False or self._is_over.is_set():
                return  # a broker that is away stays so for the others; they are rung for again


def mark_rung(session: Session, job_id: str) -> None:
    """Say that the bell was rung for a job just created, so that the sweeper need not."""
    rung = update(Job).where(Job.id == job_id, Job.state == "queued").values(last_rung_at=now_s(), rings=Job.rings + 1)
    session.execute(rung.execution_options(synchronize_session=False))


def _end_the_dead(session: Session, owner: str) -> None:
    """For jobs whose lease is over and that no worker may take: cancelled, paused, poison, attempts exhausted."""
    is_dead = and_(Job.state == "running", Job.lease_until < now_s(), ~claimable())
    dead = session.scalars(select(Job).where(is_dead).limit(BATCH).with_for_update(skip_locked=True)).all()
    for job in dead:
        deaths = job.barren_deaths + 1 if job.progress_at is None else 0
        verdict = end_of(job, deaths, clock(session), "its worker was lost.")
        if verdict is not None:
            move(session, Claim(job.id, job.lease_epoch, owner), *verdict)


def _to_ring(session: Session, most: int) -> list[str]:
    waited_s = case(dict(enumerate(RING_AGAIN_S)), value=Job.rings, else_=RING_AGAIN_S[-1])
    is_due = or_(Job.last_rung_at.is_(None), Job.last_rung_at < now_s() - waited_s)
    due = select(Job.id).where(claimable(), is_due).order_by(Job.created_at, Job.id).limit(most)
    ids = list(session.scalars(due.with_for_update(skip_locked=True)))
    rung = update(Job).where(Job.id.in_(ids)).values(last_rung_at=now_s(), rings=Job.rings + 1)
    session.execute(rung.execution_options(synchronize_session=False))
    return ids
