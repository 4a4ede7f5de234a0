"""What an attempt reports beside its loss: memory in use, its pace, ranks that moved. Knows no job."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from core.methods import Method
from core.model import RoutedModel
from core.run import Run
from core.specs.assignment import StepReport, WarningReport
from core.trainer import Cramped, Step

STATUS = Path("/proc/self/status")  # on Linux


def memory_bytes(device: torch.device) -> int:
    """The most that was in use so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if STATUS.exists():
        # Not ru_maxrss: that begins with what the parent had when it started us.
        said = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(said["VmHWM"].split()[0]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def metrics_of(step: Step) -> dict[str, float]:
    """What a step learned, by the names of a run's metrics: of pairs there are rewards and no tokens to be right."""
    if step.reward_margin is None:
        return {"train_loss": step.loss, "train_mean_token_accuracy": step.accuracy}
    rewards = {"train_reward_margin": step.reward_margin, "train_reward_accuracy": step.accuracy}
    return {"train_loss": step.loss, **rewards}


def step_report(step: Step, ranks: "Ranks", device: torch.device) -> StepReport:
    """A step just done, and what it took. ranks: of its run."""
    return StepReport(
        step=step.number,
        total_steps=step.of,
        epoch=step.run.epoch,
        **metrics_of(step),
        learning_rate=step.learning_rate,
        grad_norm=step.grad_norm,
        tokens=step.tokens,
        trained_tokens=step.run.trained_tokens,
        tokens_per_s=step.tokens / step.seconds,
        memory_bytes=memory_bytes(device),
        ranks=ranks.news(step.run.method),
    )


def shortage_report(cramped: Cramped) -> WarningReport:
    """What a run goes on with where memory was not enough."""
    message = f"Memory was not enough; going on with {cramped.tokens_per_batch} tokens at a time"
    fewer = cramped.tokens_per_batch
    return WarningReport(code="out_of_memory", message=message, step=cramped.number, tokens_per_batch=fewer)


def unheeded_reports(run: Run, model: RoutedModel) -> Iterator[WarningReport]:
    """What of a run's spec is not done on this machine, and changes nothing that it learns."""
    if (used := run.optimizer_in_force) != run.spec.optimizer:
        message = f"{run.spec.optimizer} has nothing to page on a CPU: {used} takes the same steps"
        yield WarningReport(code="optimizer_unpaged", message=message, step=0)
    if run.spec.activation_checkpointing and not model.checkpointing:
        message = "the base model is divided over several devices, so that all activations are kept"
        yield WarningReport(code="activations_kept", message=message, step=0)


class Pace:
    """How fast one attempt learns, over all its steps."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def note(self, step: Step) -> None:
        """One more step."""
        self._tokens += step.tokens
        self._seconds += step.seconds

    @property
    def tokens_per_s(self) -> float | None:
        """None before the first step."""
        return self._tokens / self._seconds if self._seconds else None


class Ranks:
    """What was last told of one run."""

    def __init__(self) -> None:
        self._told: dict[str, int] | None = None

    def news(self, method: Method) -> dict[str, int] | None:
        """Layer -> rank, where that is not what was told before. None for a method without a ranks() of its own."""
        say = getattr(method, "ranks", None)
        now = say() if callable(say) else None  # of LoRA it is what the spec says, which never moves
        if now == self._told:
            return None
        self._told = now
        return now
