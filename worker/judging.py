"""Which of a run's validations was the best, whether it gains still, and which step is to be served.

What is known so far, the best step's weights among it, travels in the run's checkpoints: a stopped run goes on to judge
as if it had never stopped. Knows no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.methods import Method
from core.run import Run
from core.specs.assignment import Outcome, ValidationReport
from core.specs.training import TrainSpec

# Of a validation beside its loss: fields of its report, and names of a run's metrics.
MEASURES = (
    "valid_mean_token_accuracy",
    "valid_reward_margin",
    "valid_reward_accuracy",
    "valid_exact_match",
    "valid_accuracy",
    "valid_macro_f1",
)
PREFIX = "best."  # of its tensors' names among a checkpoint's


@dataclass(frozen=True, eq=False)
class Best:
    """The step of the lowest validation loss so far, the earliest of equals."""

    step: int
    metrics: Mapping[str, float]  # of that step, its valid_loss among them
    weights: Mapping[str, Tensor]  # the method's state_dict() of then

    def put_into(self, method: Method) -> None:
        """Makes the method what it was then."""
        method.load_state_dict(dict(self.weights))


class Judge:
    """Of one run. mark: the validation loss that a gain is measured from; idle: validations in a row without gain."""

    def __init__(self, spec: TrainSpec) -> None:
        self._spec = spec
        self._forget()

    def _forget(self) -> None:
        self._best: Best | None = None
        self._mark: float | None = None
        self._idle = 0

    @property
    def best_step(self) -> int | None:
        """None before the first validation."""
        return None if self._best is None else self._best.step

    def hear(self, run: Run, metrics: Mapping[str, float]) -> ValidationReport:
        """Judges the validation of the step just done, metrics of which it is one, and stops a run that has enough."""
        loss, stopping = metrics["valid_loss"], self._spec.early_stopping
        if self._best is None or loss < self._best.metrics["valid_loss"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in run.method.state_dict().items()}
            self._best = Best(run.step, dict(metrics), weights)
        # What many small falls add up to is a gain too: the mark stands until the loss is so far below it.
        if self._mark is None or loss < self._mark - (stopping.min_delta if stopping else 0.0):
            self._mark, self._idle = loss, 0
        else:
            self._idle += 1
        is_enough = stopping is not None and self._idle >= stopping.patience and run.is_active
        run.is_stopped = run.is_stopped or is_enough
        return ValidationReport(
            step=run.step,
            total_steps=run.total_steps,
            valid_loss=loss,
            **{name: metrics.get(name) for name in MEASURES},
            best_step=self._best.step,
            is_enough=is_enough,
        )

    def served(self) -> Best | None:
        """The step whose weights are to be served; None is the last."""
        return self._best if self._spec.serve == "best" else None

    def outcome(self, run: Run) -> Outcome:
        """What the run came to, now that it is over."""
        best, served = self._best, self.served()
        return Outcome(
            served_step=served.step if served else run.step,
            best_step=best.step if best else None,
            best_valid_loss=best.metrics["valid_loss"] if best else None,
            stopped_early=run.is_stopped,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it beside facts()."""
        return {f"{PREFIX}{name}": t for name, t in self._best.weights.items()} if self._best else {}

    def facts(self) -> dict[str, Any]:
        """JSON, under one name."""
        best = self._best and {"step": self._best.step, "metrics": dict(self._best.metrics)}
        return {"judge": {"best": best, "mark": self._mark, "idle": self._idle}}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint. One that says nothing of it is of a run that nobody had judged yet."""
        self._forget()
        said = facts.get("judge")
        if said is None:
            return
        self._mark, self._idle = said["mark"], said["idle"]
        if said["best"]:
            weights = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
            self._best = Best(**said["best"], weights=weights)
