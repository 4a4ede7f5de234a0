"""A trainer's reports as a job's events, metrics and heartbeats; answers whether to go on. Knows no child and no file.

What the reports say is written once a second at most, and the lease renewed with it, at the latest every heartbeat_s,
in a thread of its own: an upload of minutes does not cost the lease. Who cannot renew it stops before it ends, by his
own clock.
"""

import enum
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.records import jobs
from core.records.database import Database
from core.records.events import Event
from core.specs.assignment import (
    Phase,
    PhaseReport,
    RateReport,
    Report,
    SamplesReport,
    StepReport,
    ValidationReport,
    WarningReport,
)

log = structlog.get_logger()

WRITE_S = 1.0
FENCE_AT = 0.75  # of the lease: without a heartbeat for so long, somebody else may be about to take the job
JITTER = 0.2
# What only some jobs measure: left out of the others' metrics.
TRAIN_ONLY_SOME = ("train_reward_margin", "train_reward_accuracy")
VALID_ONLY_SOME = (
    "valid_reward_margin",
    "valid_reward_accuracy",
    "valid_exact_match",
    "valid_accuracy",
    "valid_macro_f1",
)

PHASES: dict[Phase, str] = {
    "loading_model": "Loading the base model",
    "reading_data": "Reading the data",
    "searching_rate": "Searching the learning rate",
    "training": "Training",
    "evaluating": "Evaluating",
    "saving": "Saving",
}


class Verdict(enum.Enum):
    """Whether a run goes on."""

    GO_ON = enum.auto()
    PAUSE = enum.auto()  # the customer asked: leave with a checkpoint
    CANCEL = enum.auto()  # the customer asked: nothing is kept
    LOST = enum.auto()  # the lease is somebody else's, or may be: stop and write nothing


VERDICTS = {
    jobs.Asked.NOTHING: Verdict.GO_ON,
    jobs.Asked.TO_PAUSE: Verdict.PAUSE,
    jobs.Asked.TO_CANCEL: Verdict.CANCEL,
}


class Progress:
    """What one attempt has done so far. A context: while it is open the lease is renewed.

    on_lost is called once, from the renewing thread, as soon as the lease is lost.
    """

    def __init__(
        self, db: Database, held: jobs.Claim, *, lease_s: float, heartbeat_s: float, on_lost: Callable[[], None]
    ) -> None:
        self._db, self._held = db, held
        self._lease_s, self._heartbeat_s = lease_s, heartbeat_s
        self._on_lost = on_lost
        self._verdict = Verdict.GO_ON
        self._renewed_at = time.monotonic()
        self._events: list[Event] = []
        self._phase: Phase | None = None
        self._told: set[Phase] = set()
        self._last_step: StepReport | None = None
        self._is_unsaid = (
            False  # whether the row itself is behind: a phase, or the first step, without which a death is barren
        )
        self._state = threading.Lock()
        self._writing = threading.Lock()  # so that events keep their order
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Renew the lease from now on. Once."""
        self._thread.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Renew no more: before a job is ended, so that no heartbeat comes after its end. Idempotent."""
        self._is_over.set()
        self._thread.join()

    @property
    def verdict(self) -> Verdict:
        """Whether to go on. LOST also where the last heartbeat is too long ago, whatever its thread is doing."""
        if self._verdict is not Verdict.LOST and time.monotonic() - self._renewed_at > FENCE_AT * self._lease_s:
            log.warning("lease.adrift", job_id=self._held.job_id)
            self._lose()
        return self._verdict

    @property
    def is_lost(self) -> bool:
        """Whether the verdict was LOST when it was last asked for."""
        return self._verdict is Verdict.LOST

    def take(self, report: Report) -> None:
        """Note what the trainer said; it is written within WRITE_S."""
        with self._state:
            match report:
                case PhaseReport():
                    self._phase = report.phase
                    if report.phase not in self._told:  # training and evaluating take turns: once is enough
                        self._told.add(report.phase)
                        self._events.append(Event("phase", PHASES[report.phase], data={"phase": report.phase}))
                case RateReport():
                    self._events.append(rate_event(report))
                case StepReport():
                    self._last_step = report
                    self._events.append(step_event(report))
                case ValidationReport():
                    self._events += validation_events(report, self._last_step)
                case SamplesReport():
                    self._events.append(samples_event(report))
                case WarningReport():
                    self._events.append(warning_event(report))

    def note(self, event: Event) -> None:
        """Note what the supervisor itself has to say; it is written within WRITE_S."""
        with self._state:
            self._events.append(event)

    def write(self) -> None:
        """Write all that was noted and renew the lease, now. Where the database is away nothing noted is lost.

        Raises Fenced and SQLAlchemyError.
        """
        with self._writing:
            with self._state:
                events, self._events = self._events, []
            try:
                if events:
                    jobs.record(self._db, self._held, events)
                    events = []
                self._beat()
            except SQLAlchemyError:
                with self._state:
                    self._events[:0] = events
                raise

    def _beat(self) -> None:
        said = self._last_step
        began_at = time.monotonic()  # the lease counts from the statement, not from its answer
        asked = jobs.beat(
            self._db,
            self._held,
            lease_s=self._lease_s,
            step=said.step if said else None,
            total_steps=said.total_steps if said else None,
            trained_tokens=said.trained_tokens if said else None,
            phase=self._phase,
        )
        self._renewed_at = began_at
        if self._verdict is not Verdict.LOST:
            self._verdict = VERDICTS[asked]

    def _run(self) -> None:
        beat_at = time.monotonic() + self._interval_s()
        while not self._is_over.wait(max(0.0, min(WRITE_S, beat_at - time.monotonic()))):
            is_due = time.monotonic() >= beat_at
            try:
                if is_due or self._events:
                    self.write()
                    beat_at = time.monotonic() + self._interval_s()
            except jobs.Fenced:
                self._lose()
            except SQLAlchemyError as error:
                log.warning("heartbeat.failed", job_id=self._held.job_id, error=type(error).__name__)
                beat_at = time.monotonic() + min(WRITE_S, self._heartbeat_s)
            if self.verdict is Verdict.LOST:
                return

    def _interval_s(self) -> float:
        return self._heartbeat_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # spreads load, hides nothing

    def _lose(self) -> None:
        with self._state:
            is_news = self._verdict is not Verdict.LOST
            self._verdict = Verdict.LOST
        if is_news:
            self._on_lost()


def rate_event(report: RateReport) -> Event:
    """Which learning rate was found, by what, and what that took."""
    found = report.found
    message = f"Learning rate {found.rate:g} was found among {len(found.candidates)}"
    return Event("rate_found", message, data={**found.model_dump(mode="json"), "seconds": round(report.seconds, 3)})


def step_event(report: StepReport) -> Event:
    """The metrics of a step."""
    message = f"Step {report.step}/{report.total_steps}: training loss={report.train_loss:.3f}"
    return Event(
        "step", message, type="metrics", step=report.step, data=_metrics(report.step, report.total_steps, report)
    )


def validation_events(report: ValidationReport, last: StepReport | None) -> list[Event]:
    """What a validation found, and, where it is the last one before its time, that the run stops."""
    found = validation_event(report, last)
    if not report.is_enough:
        return [found]
    message = f"Stopped early at step {report.step}: the best was step {report.best_step}, and nothing gained since"
    return [found, Event("stopped_early", message, step=report.step, data={"best_step": report.best_step})]


def validation_event(report: ValidationReport, last: StepReport | None) -> Event:
    """The metrics of a step once more, the validation's among them: ours is of the whole file, so both pairs say it."""
    message = f"Step {report.step}/{report.total_steps}: validation loss={report.valid_loss:.3f}"
    of_step = last if last and last.step == report.step else None
    metrics = _metrics(report.step, report.total_steps, of_step)
    for name in ("valid_loss", "valid_mean_token_accuracy"):
        metrics[name] = metrics[f"full_{name}"] = getattr(report, name)
    metrics["best_step"] = report.best_step
    metrics |= _known(report, VALID_ONLY_SOME)
    return Event("validation", message, type="metrics", step=report.step, data=metrics)


def warning_event(report: WarningReport) -> Event:
    """What is not as asked. Later attempts read from it how many tokens memory bears (worker/preparing.py)."""
    data = None if report.tokens_per_batch is None else {"tokens_per_batch": report.tokens_per_batch}
    return Event(report.code, report.message, level="warn", step=report.step, data=data)


def samples_event(report: SamplesReport) -> Event:
    """What the run says to rows of its validation file."""
    right = sum(sample.said == sample.expected for sample in report.samples)
    message = f"Step {report.step}: {right} of {len(report.samples)} samples answered as expected"
    data = {"samples": [sample.model_dump() for sample in report.samples]}
    return Event("samples", message, step=report.step, data=data)


def _known(report: StepReport | ValidationReport | None, names: tuple[str, ...]) -> dict[str, float]:
    """Of what not every job measures, what this one did."""
    measured = {name: getattr(report, name) for name in names} if report else {}
    return {name: value for name, value in measured.items() if value is not None}


def _metrics(step: int, total_steps: int, said: StepReport | None) -> dict[str, Any]:
    """OpenAI's names, then ours; None where nothing is known."""
    return {
        "step": step,
        "total_steps": total_steps,
        "train_loss": said and said.train_loss,
        "train_mean_token_accuracy": said and said.train_mean_token_accuracy,
        "valid_loss": None,
        "valid_mean_token_accuracy": None,
        "full_valid_loss": None,
        "full_valid_mean_token_accuracy": None,
        "learning_rate": said and said.learning_rate,
        "grad_norm": said and said.grad_norm,
        "tokens_per_s": said and said.tokens_per_s,
        "gpu_mem_bytes": said and said.memory_bytes,
        **_known(said, TRAIN_ONLY_SOME),
        **({"ranks": said.ranks} if said and said.ranks else {}),
    }
