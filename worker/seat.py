"""The one place at this worker's device: one crew at a time, taken because a bell rang or because somebody looked.

A bell is a hint. What is done is what the jobs' rows say can be done, so bells lost, doubled or forged do no harm, and
without any the worker still looks every poll_s.
"""

import random
import threading
from collections.abc import Callable

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from core.records import jobs
from core.records.tables import TERMINAL_STATES, Job
from worker import workdir
from worker.crew import Crew, Join
from worker.training import Workshop

log = structlog.get_logger()

TURN_S = 0.2  # how soon a waiting bell notices that it is time to go
JITTER = 0.2
LONGEST_ID = 64


class Seat:
    """answer() is for the thread of a bell; start() begins to look in a thread of its own, close() ends it all."""

    def __init__(self, shop: Workshop, owner: str, crew: Callable[[jobs.Claim, Workshop, Join], Crew] = Crew) -> None:
        self._shop, self._owner, self._crew = shop, owner, crew
        self._place = threading.Lock()
        self._glance = threading.Event()  # something may have changed: look now
        self._looking = threading.Thread(target=self._look_about, name="poll", daemon=True)

    @property
    def is_closed(self) -> bool:
        """Whether no job is begun any more."""
        return self._shop.closing.is_set()

    @property
    def is_taken(self) -> bool:
        """Whether a job is being worked on."""
        return self._place.locked()

    def start(self) -> None:
        """Look for work now, and every poll_s from now on."""
        self._looking.start()

    def close(self) -> None:
        """Time to go: the job at hand is drained, no other begun. Returns at once, so a signal handler may call it."""
        self._shop.closing.set()

    def join(self, timeout_s: float) -> None:
        """Wait for what the looking thread has at hand."""
        self._glance.set()
        if self._looking.is_alive():
            self._looking.join(timeout_s)

    def answer(self, job_id: object) -> None:
        """Do the job that the bell names, or any other that waits, or nothing. Returns when that is done.

        While the place is taken it waits, and holds one bell only: the others stay in the queue for other workers.
        """
        is_name = isinstance(job_id, str) and 0 < len(job_id) <= LONGEST_ID
        while not self._shop.closing.is_set():
            if self._place.acquire(timeout=TURN_S):
                try:
                    self._do(str(job_id) if is_name else None)
                finally:
                    self._place.release()
                    self._glance.set()  # where one was, another may be
                return

    def _look_about(self) -> None:
        self._tidy()
        while not self._shop.closing.is_set():
            self._glance.clear()
            if self._place.acquire(blocking=False):
                try:
                    did = self._do(None)
                finally:
                    self._place.release()
                if did:
                    continue
            self._wait()

    def _wait(self) -> None:
        left_s = self._shop.settings.poll_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # spread
        while left_s > 0 and not self._shop.closing.is_set() and not self._glance.wait(min(TURN_S, left_s)):
            left_s -= TURN_S

    def _do(self, job_id: str | None) -> bool:
        """Claim and work. Whatever goes wrong is told and over: the job's lease ends and another takes it up."""
        try:
            held = self._claim(job_id)
            if held is None:
                return False
            self._crew(held, self._shop, self._join).run()
        except SQLAlchemyError as error:
            log.warning("database.away", error=type(error).__name__)
            return False
        except Exception:
            log.exception("attempt.abandoned")
            return False
        return True

    def _claim(self, job_id: str | None) -> jobs.Claim | None:
        if self._shop.closing.is_set():
            return None
        db, lease_s = self._shop.db, self._shop.settings.lease_s
        named = jobs.claim(db, owner=self._owner, lease_s=lease_s, job_id=job_id) if job_id else None
        return named or jobs.claim(db, owner=self._owner, lease_s=lease_s)

    def _join(self, kin: jobs.Kin) -> jobs.Claim | None:
        """Somebody to train beside the crew that is at work."""
        return jobs.claim_kin(self._shop.db, owner=self._owner, lease_s=self._shop.settings.lease_s, kin=kin)

    def _tidy(self) -> None:
        """Remove the folders of jobs that ended while no worker of this machine held them."""
        data_dir = self._shop.settings.data_dir
        left = workdir.left_behind(data_dir)
        try:
            going_on = select(Job.id).where(Job.id.in_(left), Job.state.not_in(TERMINAL_STATES))
            with self._shop.db.session() as session:
                alive = set(session.scalars(going_on))
        except SQLAlchemyError as error:
            log.warning("database.away", error=type(error).__name__)
            return
        for job_id in set(left) - alive:
            workdir.remove(data_dir, job_id)
