"""A training run, every value resolved: what a job's row stores, what the trainer obeys, what the client reads back."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from core.specs.method import MethodSpec
from core.specs.rate_search import RATE_BOUNDS, FoundRate, RateSearch, search_around
from core.specs.spec import Spec

Auto = Literal["auto"]
Searched = Literal["search"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"]
Serve = Literal["best", "last"]
SMALL_DATASET = 4096  # rows under which more passes and smaller batches pay
# Peak learning rates found by trying (benchmarks/methods.py). Virtual tokens need far more than weights do.
LEARNING_RATES = {
    "lora": 5e-4,
    "qlora": 5e-4,
    "adalora": 2e-3,
    "prefix_tuning": 1e-3,
    "prompt_tuning": 2e-2,
    "p_tuning": 2e-3,
}
# Of those, what DPO takes (docs/methods/dpo.md).
DPO_RATE_FACTOR = 0.2
# What makes virtual tokens is shaken apart by a first step at the full rate.
WARMUP_RATIOS = {"prefix_tuning": 0.1, "prompt_tuning": 0.1, "p_tuning": 0.1}


def _within(bounds: dict[str, tuple[float, float]], value: Auto | float, field: ValidationInfo) -> Auto | float:
    """A field's own error, so that a client is told which one it was."""
    assert field.field_name
    low, high = bounds[field.field_name]
    if value != "auto" and not low <= value <= high:
        raise ValueError(f"{value} is not 'auto' and not between {low} and {high}")
    return value


class HyperparametersRequest(Spec):
    """OpenAI's three knobs."""

    n_epochs: Auto | int = Field("auto")
    batch_size: Auto | int = Field("auto", description="Rows of one optimiser step.")
    learning_rate_multiplier: Auto | float = Field("auto", description="Multiplies the learning rate.")

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier")
    @classmethod
    def _bounded(cls, value: Auto | float, field: ValidationInfo) -> Auto | float:
        return _within(
            {"n_epochs": (1, 50), "batch_size": (1, 256), "learning_rate_multiplier": (1e-3, 100.0)}, value, field
        )


class DPOHyperparametersRequest(HyperparametersRequest):
    """OpenAI's knobs of DPO."""

    beta: Auto | float = Field("auto", description="How strongly the adapter is held to where it started.")

    @field_validator("beta")
    @classmethod
    def _within_reach(cls, value: Auto | float, field: ValidationInfo) -> Auto | float:
        return _within({"beta": (1e-3, 10.0)}, value, field)

    @property
    def knobs(self) -> HyperparametersRequest:
        """Those that every job has."""
        return HyperparametersRequest(**self.model_dump(exclude={"beta"}))


class EarlyStopping(Spec):
    """When a run that no longer gains ends before its last epoch."""

    patience: int = Field(ge=1, le=1000, description="Validations in a row without gain after which the run ends.")
    min_delta: float = Field(0.0, ge=0, le=100, description="Nats by which a validation loss must fall to be a gain.")


class DPO(Spec):
    """Learning from pairs of answers. Rafailov et al. 2023, arXiv:2305.18290."""

    beta: float = Field(0.1, gt=0, le=10, description="How strongly the adapter is held to where it started.")


class TrainingRequest(Spec):
    """Our further knobs, the top-level extension `training`."""

    learning_rate: Auto | Searched | float = Field("auto")
    optimizer: Auto | Optimizer = Field("auto", description="'auto' is AdamW, and paged AdamW on an NF4 base.")
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Auto | float = Field(
        "auto", description="Share of the steps over which the rate rises; 'auto' is 0.1 for virtual tokens, else 0.03."
    )
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, le=1000)
    neftune_alpha: float | None = Field(
        None, gt=0, le=100, description="Noise on the words' embeddings while training. Jain et al. 2023, NEFTune."
    )
    max_seq_length: Auto | int = Field(
        "auto", description="Tokens of the longest row; 'auto' is the base model's context."
    )
    tokens_per_batch: Auto | int = Field("auto", description="Tokens of one forward; a step's rows are split to fit.")
    activation_checkpointing: Auto | bool = Field(
        "auto", description="Keep a layer's input alone and run it again in backward; 'auto' does where memory asks."
    )
    train_on: Literal["assistant", "last"] = Field(
        "assistant", description="Loss on every assistant turn, or the last."
    )
    eval_steps: Auto | int = Field("auto", description="Steps between validations; 'auto' is once an epoch.")
    n_checkpoints: int = Field(3, ge=1, le=10, description="How many checkpoints stay usable as models.")
    eval_samples: int = Field(3, ge=0, le=20, description="Validation rows that each validation answers in full.")
    early_stopping: EarlyStopping | None = Field(None, description="Needs a validation file.")
    serve: Serve = Field("best", description="The step of the lowest validation loss, where there is one, or the last.")

    @field_validator("learning_rate", "warmup_ratio", "max_seq_length", "tokens_per_batch", "eval_steps")
    @classmethod
    def _bounded(cls, value: Auto | Searched | float, field: ValidationInfo) -> Auto | Searched | float:
        if value == "search":
            return value
        bounds = {
            "learning_rate": RATE_BOUNDS,
            "warmup_ratio": (0.0, 0.5),
            "max_seq_length": (8, 1_000_000),
            "tokens_per_batch": (64, 1_000_000),
            "eval_steps": (1, 1_000_000),
        }
        return _within(bounds, value, field)


class TrainSpec(Spec):
    """One run with nothing left to choose."""

    base_model: str
    method: MethodSpec
    n_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="Rows of one optimiser step.")
    learning_rate_multiplier: float = Field(1.0, gt=0)
    learning_rate: float = Field(gt=0, description="The peak, multiplier included; of a search, until it has found it.")
    optimizer: Optimizer = "adamw"
    lr_scheduler: Literal["cosine", "linear", "constant"]
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    neftune_alpha: float | None = None
    max_seq_length: int
    tokens_per_batch: int
    activation_checkpointing: bool = Field(False, description="Whether backward runs each layer again from its input.")
    activation_offload: bool = Field(False, description="Whether these inputs wait in host memory. Of a GPU.")
    train_on: Literal["assistant", "last"]
    eval_steps: int | None = Field(description="None validates once an epoch.")
    n_checkpoints: int
    eval_samples: int = 3
    early_stopping: EarlyStopping | None = None
    serve: Serve = "best"
    seed: int = Field(ge=0, lt=2**31)
    dpo: DPO | None = Field(None, description="Of a job that learns from pairs; None learns from examples.")
    continue_from: str | None = Field(None, description="The model whose weights training goes on from.")
    continue_from_sha256: str | None = Field(None, description="Of its zip.")
    init_adapter_sha256: str | None = Field(None, description="Of the zip that the method's init_adapter names.")
    rate_search: RateSearch | None = Field(None, description="Of a job whose learning rate is found.")

    @property
    def is_searching(self) -> bool:
        """Whether the learning rate is still to be found."""
        return self.rate_search is not None and self.rate_search.found is None

    def with_rate(self, found: FoundRate) -> "TrainSpec":
        """The same run, its learning rate found."""
        assert self.rate_search is not None
        search = self.rate_search.model_copy(update={"found": found})
        return self.model_copy(update={"learning_rate": found.rate, "rate_search": search})


# What a run takes as it was asked.
AS_ASKED = (
    *("weight_decay", "max_grad_norm", "neftune_alpha", "train_on"),
    *("n_checkpoints", "eval_samples", "early_stopping", "serve"),
)


def resolve(
    *,
    base_model: str,
    context: int,
    method: MethodSpec,
    hyperparameters: HyperparametersRequest,
    training: TrainingRequest,
    seed: int,
    n_examples: int,
    dpo: DPO | None = None,
) -> TrainSpec:
    """Every "auto" made a number. A pure function of its arguments, so that the API can echo what the trainer will do.

    Of activation_checkpointing "auto" is off here: an estimate may turn it on (core/frugality.py).

    context: tokens the base model can attend to, of which a prefix takes its own. n_examples: of the training file.
    """
    batch, epochs = _passes(hyperparameters, n_examples)
    multiplier = 1.0 if hyperparameters.learning_rate_multiplier == "auto" else hyperparameters.learning_rate_multiplier
    rate = LEARNING_RATES[method.type] * (DPO_RATE_FACTOR if dpo else 1)
    if not isinstance(training.learning_rate, str):
        rate = training.learning_rate
    optimizer = training.optimizer
    if optimizer == "auto":
        optimizer = "paged_adamw_32bit" if method.base_precision == "nf4" else "adamw"
    room = max(0, context - method.prefix_length)
    warmup = WARMUP_RATIOS.get(method.type, 0.03) if training.warmup_ratio == "auto" else training.warmup_ratio
    length = room if training.max_seq_length == "auto" else min(training.max_seq_length, room)
    steps = -(-max(n_examples, 1) // batch) * epochs
    is_searched = training.learning_rate == "search"
    return TrainSpec(
        base_model=base_model,
        method=method,
        n_epochs=epochs,
        batch_size=batch,
        learning_rate_multiplier=multiplier,
        learning_rate=rate * multiplier,
        optimizer=optimizer,
        lr_scheduler=training.lr_scheduler,
        warmup_ratio=warmup,
        max_seq_length=length,
        tokens_per_batch=2048 if training.tokens_per_batch == "auto" else training.tokens_per_batch,
        activation_checkpointing=training.activation_checkpointing is True,
        eval_steps=None if training.eval_steps == "auto" else training.eval_steps,
        seed=seed,
        dpo=dpo,
        rate_search=search_around(rate * multiplier, steps=steps, batch_size=batch) if is_searched else None,
        **{name: getattr(training, name) for name in AS_ASKED},
    )


def _passes(asked: HyperparametersRequest, n_examples: int) -> tuple[int, int]:
    """Rows of one optimiser step, and passes over the data."""
    batch = asked.batch_size
    if batch == "auto":
        batch = 8 if n_examples < SMALL_DATASET else 16
    if asked.n_epochs != "auto":
        return batch, asked.n_epochs
    # Small sets need more passes to be learned; beyond a few hundred optimiser steps more passes only overfit.
    epochs = max(1, min(6, round(400 * batch / max(n_examples, 1))))
    return batch, max(epochs, 3) if n_examples < SMALL_DATASET else epochs
