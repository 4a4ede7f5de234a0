"""One attempt at one job, inside the trainer child: read the data, hear what was learned, save, say what happened.

Knows neither who listens nor how, nor who learns beside it. Every wish to stop is heard between two turns, two lines of
a file and two parts of a validation; the work that belongs to a step (validation, adapter, checkpoint) is taken up by
the next attempt.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from core import checkpoint
from core.data.batches import Corpus
from core.preferences import Pairs
from core.run import Run
from core.settings import Settings
from core.specs.assignment import (
    FINISHED,
    Assignment,
    CheckpointReport,
    FinishedReport,
    PhaseReport,
    RateReport,
    Report,
    SamplesReport,
    WarningReport,
)
from core.specs.rate_search import FoundRate
from core.trainer import Cramped, Event, Failed, Score, Skipped, Step
from worker import due, failpoints
from worker.beginning import RateSearch, new_run, rate_kept
from worker.export import details_of, export
from worker.judging import Judge
from worker.meters import Pace, Ranks, memory_bytes, metrics_of, shortage_report, step_report, unheeded_reports
from worker.opened import Opened
from worker.reading import corpus_of
from worker.reasons import Diverged, Drained
from worker.shift import measured_shift
from worker.sign_of_life import SignOfLife
from worker.validating import Validation
from worker.wish import Wish

SKIPS_TO_GO_BACK = 3  # steps in a row that were not finite


class Attempt:
    """What one attempt holds in its hands: first read(), in any thread, then begin() and hear(), in the model's.

    It raises Drained, Diverged, UnusableMethodError, UnusableFileError; anything else is a crash.
    """

    corpus: Corpus | Pairs
    validation: Validation | None
    run: Run

    def __init__(self, assignment: Assignment, settings: Settings, say: Callable[[Report], None], drain: Wish) -> None:
        self.assignment, self.spec, self.settings = assignment, assignment.spec, settings
        self.say, self.drain = say, drain
        self.checkpoints = assignment.work_dir / "checkpoints"
        self.adapters = assignment.work_dir / "adapters"
        self.ranks, self.pace = Ranks(), Pace()
        self.metrics: dict[str, float] = {}  # of the last step, and of the last validation
        self.saved_at = time.monotonic()
        self._saved = self._heard = 0  # steps: of the newest checkpoint, and done when the run was last heard of

    def read(self, opened: Opened) -> None:
        """Makes token rows of the files. No model is called: others may be learning meanwhile."""
        self.opened, self.base, self.model = opened, opened.base, opened.model
        self.say(PhaseReport(phase="reading_data"))
        self.corpus = self._read(self.assignment.training_file, "training_file")
        file = self.assignment.validation_file
        self.validation = None if file is None else Validation(self._read(file, "validation_file"), self.base)
        self.judge = Judge(self.spec)

    def begin(self) -> int | None:
        """Goes to where the job stands. FINISHED where nothing was left but to make its adapter; else train the run."""
        search = checkpoint.newest(self.checkpoints)
        if self.spec.is_searching:
            self.spec = self.spec.with_rate(rate_kept(self.spec, search.found) or self._found_rate())
            self.assignment = self.assignment.model_copy(update={"spec": self.spec})
        self.run = new_run(self.assignment, self.opened, self.corpus, self.spec)
        is_settled = self._resume(search)
        self.say(PhaseReport(phase="training"))
        if not is_settled:
            self._settle()
        self._heard = self.run.step
        return self._conclude()

    def hear(self, event: Event) -> int | None:
        """Does what belongs to a turn of the run. FINISHED once that was its last and the adapter is made."""
        match event:
            case Cramped():
                self.say(shortage_report(event))
                return None
            case Step():
                self._report(event)
            case Skipped():
                self._skip(event)
            case Failed(error=error):
                raise error
        if self.run.step == event.number:  # after a roll-back it is a step that was settled before
            self._settle()
        self._heard = self.run.step
        return self._conclude()

    @property
    def is_to_leave(self) -> bool:
        """Whether it is asked to, and no step of its run is done that it has not heard of."""
        return self.drain.is_set() and self._heard == self.run.step

    def leave(self) -> NoReturn:
        """Stops between two turns, while a step is under way, which is given up."""
        self._stop(is_settled=True)

    def _conclude(self) -> int | None:
        if self.run.is_active:
            return None
        if self.run.has_finite_weights:
            return self._finish()
        self._go_back("the adapter itself is not finite")
        return None

    def _read(self, path: Path, param: str) -> Corpus | Pairs:
        heed = SignOfLife(self.say, "reading_data", is_said=True, wish=self.drain)
        context = self.base.facts.context
        return corpus_of(path, self.base.tokenizer, self.spec, context=context, param=param, heed=heed)

    def _found_rate(self) -> FoundRate:
        """Searches the learning rate and says it. Who is stopped in between begins anew, and finds the same."""
        validation = None if self.validation is None else self.validation.corpus
        search = RateSearch(self.assignment, self.opened, self.corpus, validation)
        began, heed = time.monotonic(), SignOfLife(self.say, "searching_rate", wish=self.drain)
        for number, _ in enumerate(search.steps(), start=1):
            heed()
            self._reached(f"search:{number}")
        self.say(RateReport(found=search.found, seconds=time.monotonic() - began))
        return search.found

    def _resume(self, search: checkpoint.Search) -> bool:
        """Loads the newest whole checkpoint. False: the work that belongs to its step is still to be done."""
        found = search.found
        reached = found.step if found else 0
        for damage in search.damaged:
            message = f"{damage.path.name}: {damage.reason}; going on from step {reached}"
            self.say(WarningReport(code="checkpoint_corrupt", message=message, step=reached))
        if found is None:
            for unheeded in unheeded_reports(self.run, self.model):
                self.say(unheeded)
            return True
        self._load(found)
        if found.facts["has_adapter"]:
            # Nobody may have been told of it: the attempt that made it can have died before it could say so.
            self._tell(found.path, self._export(f"step-{found.step}.zip"))
        return bool(found.facts["is_settled"])

    def _load(self, found: checkpoint.Checkpoint) -> None:
        self.run.load(found.tensors, found.facts)
        self._saved = found.step
        self.judge.load(found.tensors, found.facts)
        self.metrics = dict(found.facts["metrics"])

    def _report(self, step: Step) -> None:
        self.metrics |= metrics_of(step)
        self.pace.note(step)
        self.say(step_report(step, self.ranks, self.base.device))
        self._reached(f"step:{step.number}")

    def _skip(self, skipped: Skipped) -> None:
        message = f"the loss or gradient of step {skipped.number} was not finite; nothing was learned from it"
        self.say(WarningReport(code="step_skipped", message=message, step=skipped.number))
        if skipped.in_a_row >= SKIPS_TO_GO_BACK:
            self._go_back(f"loss or gradients were not finite in {SKIPS_TO_GO_BACK} steps in a row")

    def _go_back(self, reason: str) -> None:
        """Rolls back to the newest checkpoint, to go on with half the learning rate. Once; Diverged after that."""
        found, stopped_at = checkpoint.newest(self.checkpoints).found, self.run.step
        if self.run.rate_factor < 1:
            self._keep_last_good(found)
            raise Diverged(
                f"step {stopped_at}: {reason}, though the learning rate was halved before; choose a lower one"
            )
        fresh = partial(new_run, self.assignment, self.opened, self.corpus, self.spec)
        tensors, facts = (found.tensors, found.facts) if found else fresh().state()
        self.run.roll_back(tensors, facts)
        self.judge.load(tensors, facts)
        message = f"{reason}; rolled back from step {stopped_at} to step {self.run.step}, with half the learning rate"
        self.say(WarningReport(code="rolled_back", message=message, step=self.run.step))

    def _keep_last_good(self, found: checkpoint.Checkpoint | None) -> None:
        """Makes the last good state a usable adapter, though the job fails."""
        if found is not None:
            self._load(found)
            self._tell(found.path, self._export(f"step-{found.step}.zip"))

    def _settle(self) -> None:
        """Does what belongs to the step just done: validation, adapter, checkpoint. Nothing for a step gone wrong."""
        if self.drain.is_set():
            self._stop()
        is_last = not self.run.is_active and self.run.has_finite_weights
        if not (self.run.is_sound or is_last):
            return
        if self.validation is not None and due.validation(self.run) and not self._validate():
            self._go_back("the validation loss is not finite")
            return
        has_adapter = due.adapter(self.run) or self.judge.best_step == self.run.step
        if has_adapter or due.checkpoint(self.run, self.settings, since_s=time.monotonic() - self.saved_at):
            path = self._save(has_adapter=has_adapter)
            self._tell(path, self._export(f"step-{self.run.step}.zip") if has_adapter else None)

    def _validate(self) -> bool:
        """Scores the whole validation file and says the result; False, and nothing said, where it is not finite."""
        assert self.validation is not None
        score, heed = Score(), SignOfLife(self.say, "evaluating", wish=self.drain, stop=self._stop)
        for so_far in self.validation.scores(self.model, self.run):
            score = so_far
            heed()
        if not math.isfinite(score.loss):
            return False
        metrics, samples = self.validation.found(self.model, self.run, score, heed)
        self.metrics |= metrics
        self.say(self.judge.hear(self.run, self.metrics))
        if samples:
            self.say(SamplesReport(step=self.run.step, samples=samples))
        self._reached(f"validation:{self.run.step}")
        self.say(PhaseReport(phase="training"))
        return True

    def _export(self, name: str, *, step: int | None = None, measured: dict[str, Any] | None = None) -> Path:
        return export(
            self.run.method,
            self.adapters / name,
            assignment=self.assignment,
            base=self.base,
            rows=len(self.corpus),
            step=self.run.step if step is None else step,
            metrics=self.metrics,
            measured=measured,
        )

    def _save(self, *, has_adapter: bool = False, is_settled: bool = True) -> Path:
        tensors, facts = self.run.state()
        path = checkpoint.save(
            self.checkpoints,
            step=self.run.step,
            lease_epoch=self.assignment.lease_epoch,
            tensors=tensors | self.judge.tensors(),
            facts={
                **facts,
                **self.judge.facts(),
                "metrics": self.metrics,
                "has_adapter": has_adapter,
                "is_settled": is_settled,
            },
        )
        self.saved_at, self._saved = time.monotonic(), self.run.step
        self._reached(f"checkpoint:{self.run.step}")
        return path

    def _tell(self, path: Path, adapter: Path | None = None) -> None:
        best = self.judge.best_step
        self.say(CheckpointReport(step=self.run.step, path=path, adapter=adapter, metrics=self.metrics, best_step=best))

    def _stop(self, *, is_settled: bool = False) -> NoReturn:
        """Saves what was learned; what still belongs to this step, if anything, is left to the next attempt."""
        # After a step gone wrong the next attempt starts from the last good state and comes by here again.
        if self.run.step not in (0, self._saved) and self.run.is_sound:
            self._tell(self._save(is_settled=is_settled))
        raise Drained

    def _finish(self) -> int:
        self.say(PhaseReport(phase="saving"))
        outcome = self.judge.outcome(self.run)
        if served := self.judge.served():
            served.put_into(self.run.method)
            self.metrics = dict(served.metrics)
        measured = measured_shift(self.run.method, self.corpus.chosen, self.base, self.model, self.assignment)
        adapter = self._export("final.zip", step=outcome.served_step, measured=measured)
        self._reached("finish")
        self.say(
            FinishedReport(
                step=self.run.step,
                adapter=adapter,
                trained_tokens=self.run.trained_tokens,
                metrics=self.metrics,
                details=details_of(self.run.method, self.base) | measured,
                outcome=outcome,
                memory_bytes=memory_bytes(self.base.device),
                tokens_per_s=self.pace.tokens_per_s,
            )
        )
        return FINISHED

    def _reached(self, point: str) -> None:
        failpoints.reached(point, self.assignment.lease_epoch)
