"""The jobs of one trainer process, in step on one base model: who is admitted, what each hears, how each leaves.

Each turn takes one optimiser step of every job, so that none waits for a bigger one. Who comes while others learn has
its data read in a thread of its own and is admitted between two turns. What goes wrong with one job ends that job
alone; only a lack of memory, and an error of the common forward, are everybody's.
"""

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from core.run import Run
from core.settings import Settings
from core.shortage import is_lack_of_memory
from core.specs.assignment import (
    DRAINED,
    FINISHED,
    OUT_OF_MEMORY,
    Assignment,
    Ended,
    Leave,
    Order,
    PhaseReport,
    Report,
    Said,
    Told,
)
from core.team import Team
from core.trainer import Event, train
from worker.attempt import Attempt
from worker.opened import Opened
from worker.outcome import code_of
from worker.sign_of_life import SignOfLife
from worker.wish import Wish


@dataclass(frozen=True, eq=False)
class _Arrival:
    """A job whose data was read, or that ended over it: with a code of its own, or with everybody's lack of memory."""

    attempt: Attempt
    code: int | None = None
    error: Exception | None = None


class Company:
    """Of one process, whose main thread runs go(). take() is for the thread that hears orders.

    tell may be called from any thread. drain: set when all are to stop. team: of processes that this one leads.
    """

    def __init__(
        self, settings: Settings, tell: Callable[[Told], None], drain: threading.Event, team: Team | None = None
    ) -> None:
        self._settings, self._tell, self._drain, self._team = settings, tell, drain, team
        self._opened: Opened | None = None
        self._opening = threading.Lock()
        self._attempts: dict[Run, Attempt] = {}
        self._runs: list[Run] = []  # of these attempts; train() reads it anew each turn
        self._wishes: dict[str, Wish] = {}
        self._arrivals: queue.Queue[_Arrival] = queue.Queue()
        self._door = threading.Lock()
        self._coming = 0  # taken, and not yet admitted
        self._is_closed = False
        self._code = FINISHED  # of the job that ended last

    def go(self, first: Assignment) -> int:
        """Trains until no job is left, and returns the exit code of the last. What it raises is a crash of all."""
        try:
            self._expect(first)
            self._arrive(first)  # in this thread: there is nobody yet who would have to wait for it
            while self._is_anyone_left():
                self._admit(is_patient=not self._attempts)
                self._train()
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            traceback.print_exc()
            return OUT_OF_MEMORY
        return self._code

    def take(self, order: Order) -> None:
        """Reads a further job, or lets one go. What comes when the last job has left is not heard."""
        match order:
            case Assignment():
                if self._expect(order):
                    threading.Thread(target=self._arrive, args=(order,), name="reader", daemon=True).start()
            case Leave(job_id=job_id) if job_id in self._wishes:
                self._wishes[job_id].for_one.set()

    def _train(self) -> None:
        if self._opened is None:
            return
        live = SignOfLife(self._say_of_one, "training", is_said=True)
        for event in train(self._opened.model, self._runs, self._team, heed=live):
            if event.run in self._attempts:  # it may have left since the turn that this is of
                self._hear(event)
            self._let_go()
            self._admit(is_patient=False)

    def _say_of_one(self, report: Report) -> None:
        """What is true of all that train, in the name of one."""
        next(iter(self._attempts.values())).say(report)

    def _expect(self, assignment: Assignment) -> bool:
        with self._door:
            if not self._is_closed:
                self._coming += 1
                self._wishes[assignment.job_id] = Wish(self._drain)
            return not self._is_closed

    def _is_anyone_left(self) -> bool:
        with self._door:
            self._is_closed = not self._attempts and not self._coming
            return not self._is_closed

    def _arrive(self, assignment: Assignment) -> None:
        """Opens the base model for the first, and reads the data."""
        attempt = Attempt(assignment, self._settings, self._say_of(assignment), self._wishes[assignment.job_id])
        try:
            code = code_of(lambda: attempt.read(self._open(attempt)), assignment, attempt.say)
            self._arrivals.put(_Arrival(attempt, code))
        except Exception as error:  # noqa: BLE001 - a lack of memory, which is the main thread's to raise
            self._arrivals.put(_Arrival(attempt, error=error))

    def _open(self, attempt: Attempt) -> Opened:
        with self._opening:
            if self._opened is None:
                attempt.say(PhaseReport(phase="loading_model"))
                self._opened = self._newly_opened(attempt.assignment)
            return self._opened

    def _newly_opened(self, assignment: Assignment) -> Opened:
        if self._team is None:
            return Opened.of(assignment, self._settings)
        return Opened.with_team(assignment, self._settings, self._team)

    def _admit(self, *, is_patient: bool) -> None:
        """Lets in whoever has arrived. is_patient: waits for somebody."""
        while is_patient or not self._arrivals.empty():
            arrival, is_patient = self._arrivals.get(), False
            if arrival.error is not None:
                raise arrival.error
            self._begin(arrival.attempt, arrival.code)
            with self._door:
                self._coming -= 1

    def _begin(self, attempt: Attempt, code: int | None) -> None:
        if code is None:
            code = DRAINED if attempt.drain.is_set() else code_of(attempt.begin, attempt.assignment, attempt.say)
        if code is not None:
            self._end(attempt, code)
            return
        self._attempts[attempt.run] = attempt
        self._runs.append(attempt.run)

    def _hear(self, event: Event) -> None:
        self._act(event.run, lambda attempt: attempt.hear(event))

    def _let_go(self) -> None:
        """Who is asked to leave, and in the midst of a step of several turns, goes at once."""
        for run in [run for run, attempt in self._attempts.items() if attempt.is_to_leave]:
            self._act(run, lambda attempt: attempt.leave())

    def _act(self, run: Run, act: Callable[[Attempt], int | None]) -> None:
        attempt = self._attempts[run]
        code = code_of(lambda: act(attempt), attempt.assignment, attempt.say)
        if code is not None:
            del self._attempts[run]
            self._runs.remove(run)
            self._end(attempt, code)

    def _end(self, attempt: Attempt, code: int) -> None:
        self._code = code
        job_id = attempt.assignment.job_id
        del self._wishes[job_id]
        self._tell(Ended(job_id=job_id, code=code))

    def _say_of(self, assignment: Assignment) -> Callable[[Report], None]:
        return lambda report: self._tell(Said(job_id=assignment.job_id, report=report))
