"""What the process that leads a team tells those that follow, and what they say back: JSON. Tensors go beside it.

An order names effects and rows, never a job, a method or a file: who follows needs the base model alone.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from core.specs.spec import Spec


class LowRankPlan(Spec):
    """A LowRank but for its tensors, which come in the order of its fields."""

    kind: Literal["low_rank"] = "low_rank"
    sites: tuple[str, ...]  # of a, b and scale
    scale: tuple[float, ...]
    dropout: float
    tables: tuple[str, ...]
    magnitudes: tuple[str, ...]
    norms: tuple[str, ...]


class PromptPlan(Spec):
    """A SoftPrompt. Where it stands is in the rows' ids."""

    kind: Literal["prompt"] = "prompt"


class PrefixPlan(Spec):
    """A KVPrefix."""

    kind: Literal["prefix"] = "prefix"


EffectPlan = Annotated[LowRankPlan | PromptPlan | PrefixPlan, Field(discriminator="kind")]


class TensorPlan(Spec):
    """One tensor of an effect: what it looks like, and whether its gradient is wanted."""

    shape: tuple[int, ...]
    dtype: str
    is_live: bool


class OwnerPlan(Spec):
    """Whose rows some are, as far as their loss needs it. weight: its denominator over the whole turn."""

    weight: int
    beta: float | None = Field(None, description="Of DPO.")


class RowPlan(Spec):
    """One row of a micro-batch. Numbers are places in the turn's owners and effects; None is the bare base."""

    owner: int
    key: int
    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    effect: int
    reference: int | None
    noise: float


class Turn(Spec):
    """One forward and backward over everybody's rows: of each process its micro-batches."""

    kind: Literal["turn"] = "turn"
    owners: tuple[OwnerPlan, ...]
    effects: tuple[EffectPlan, ...]
    tensors: tuple[TensorPlan, ...]
    shares: tuple[tuple[tuple[RowPlan, ...], ...], ...]
    rounds: tuple[bool, ...] = Field(description="As many as the longest share; whether anyone compares pairs in it.")


class Passing(Spec):
    """The leader goes through a base model that is divided: so does everyone, once, without gradients."""

    kind: Literal["passing"] = "passing"


class Dismissed(Spec):
    """There is nothing left to do."""

    kind: Literal["dismissed"] = "dismissed"


Order = Annotated[Turn | Passing | Dismissed, Field(discriminator="kind")]
ORDER: TypeAdapter[Order] = TypeAdapter(Order)


class Sum(Spec):
    """Of one owner's rows in one process: core.score.Score's."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    total: float = 0.0
    count: int = 0
    correct: int = 0
    margin: float = 0.0
    error: str | None = None  # that ends this owner alone


class Outcome(Spec):
    """How a process's share of a turn went: by owner what it cost, or why it came to nothing."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    sums: tuple[Sum, ...] = ()
    lack: str | None = None  # of memory
    crash: str | None = None  # of the common forward
