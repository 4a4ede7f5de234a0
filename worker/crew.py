"""The jobs that one trainer child trains in step: who is let in beside the first, and what becomes of all of them.

Each keeps its own lease, folder and end, which is the attempts' business. Knows no row and no file.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.records import jobs
from core.specs.assignment import DRAINED, FINISHED, NOT_FINITE, OUT_OF_MEMORY, USER_ERROR
from worker.child import OWN_TRAINER, Child, environment
from worker.supervision import Ending, Supervision
from worker.training import Attempt, Workshop

log = structlog.get_logger()

LOOK_S = 1.0  # how often somebody else is looked for
ORDERLY = (FINISHED, USER_ERROR, NOT_FINITE, DRAINED)  # how a child ends that has done with its jobs
Join = Callable[[jobs.Kin], jobs.Claim | None]


def _nobody(_: jobs.Kin) -> None:
    return None


class Crew:
    """Of one claim, and of those that join asks for. The thread that runs it is the child's supervisor."""

    def __init__(self, first: jobs.Claim, shop: Workshop, join: Join = _nobody) -> None:
        self._first, self._shop, self._join = first, shop, join
        self._attempts: dict[str, Attempt] = {}
        self._child: Child | None = None
        self._log_file = Path()
        self._looked_at = -LOOK_S

    def run(self) -> None:
        """Returns when every job has moved on, or is another's."""
        with tempfile.TemporaryDirectory(prefix="graft-trainer-") as folder:
            self._log_file = Path(folder) / "trainer.log"
            try:
                self._admit(self._first)
                while self._attempts:
                    self._part(self._supervised())
            finally:
                for attempt in self._attempts.values():  # none, but for an error of ours
                    attempt.abandon()

    def _admit(self, held: jobs.Claim) -> None:
        attempt = Attempt(held, self._shop, on_lost=self._on_lost)
        if not attempt.open():
            return
        self._attempts[held.job_id] = attempt
        if self._child is not None:
            self._child.assign(attempt.assignment)

    def _supervised(self) -> Ending:
        shop = self._shop
        command = shop.settings.trainer_command or OWN_TRAINER
        env = environment(shop.settings, os.environ)
        assignments = [attempt.assignment for attempt in self._attempts.values()]
        self._child = child = Child(command, assignments, env=env, log_file=self._log_file)
        tokens = [assignment.spec.tokens_per_batch for assignment in assignments]
        log.info("child.started", pid=child.pid, job_ids=list(self._attempts), tokens_per_batch=min(tokens))
        ending = Supervision(child, self._attempts, self._look, closing=shop.closing, settings=shop.settings).run()
        log.info("child.ended", pid=child.pid, exit_code=ending.exit_code)
        return ending

    def _look(self) -> None:
        """Lets in whoever may join, one at a time and not too often."""
        if time.monotonic() - self._looked_at < LOOK_S or len(self._attempts) >= self._shop.most_in_step:
            return
        self._looked_at = time.monotonic()
        if any(attempt.is_alone or attempt.assignment.spec.is_searching for attempt in self._attempts.values()):
            return
        kin = next(iter(self._attempts.values())).kin
        try:
            held = self._join(kin)
        except SQLAlchemyError as error:
            log.warning("database.away", error=type(error).__name__)
            return
        if held is not None:
            self._admit(held)
            self._looked_at = -LOOK_S  # where one was, another may be

    def _part(self, ending: Ending) -> None:
        """What becomes of those whom the child's end left. Some of them may need another child."""
        left = list(self._attempts.values())
        is_exhausted = ending.exit_code == OUT_OF_MEMORY and all(attempt.stop is None for attempt in left)
        if is_exhausted and len(left) > 1:
            self._thin(left)
            return
        for attempt in left:
            # Given to a child that had just done with all its others, so that it never heard of it.
            is_news = ending.n_settled and ending.exit_code in ORDERLY and attempt.is_unheard and attempt.stop is None
            if is_news or (is_exhausted and attempt.shrink()):
                continue
            del self._attempts[attempt.job_id]
            attempt.settle(ending.exit_code, self._last_words)

    def _thin(self, left: list[Attempt]) -> None:
        """Memory was not enough for all: the first goes on alone, and from now on this worker trains one at a time."""
        log.warning("in_step.crowded", job_ids=list(self._attempts))
        self._shop.is_crowded.set()
        for attempt in left[1:]:
            del self._attempts[attempt.job_id]
            attempt.give_back()

    def _last_words(self) -> str:
        return self._child.tail() if self._child else ""

    def _on_lost(self) -> None:
        """Called in the thread that renews a lease, whatever the supervisor is busy with."""
        if self._child is not None and all(attempt.is_lost for attempt in list(self._attempts.values())):
            self._child.kill()
