"""What is known of a base model and of a dataset before anything is trained, and what is foretold from it."""

from typing import Literal

from pydantic import Field, JsonValue

from core.specs.spec import Spec

Basis = Literal["jobs", "device", "default"]


class SiteShape(Spec):
    """A linear layer, the output head not among them."""

    name: str
    width_in: int
    width_out: int


class BaseShape(Spec):
    """The shape of a base model as an engine has opened it: numbers alone, so that the front end can reckon with it."""

    hidden: int = Field(description="H")
    layers: int = Field(description="L")
    heads: int = Field(description="Of the queries.")
    kv_heads: int = Field(description="K")
    head_width: int = Field(description="D")
    vocabulary: int = Field(description="V")
    is_tied: bool = Field(description="Whether the output head is the table of embeddings.")
    table: str = Field(description="The name of that table, which a LoRA may change.")
    sites: tuple[SiteShape, ...]
    value_bytes: int = Field(description="Of one number that the base computes with: 2 in bf16, 4 in fp32.")
    products_per_s: float | None = Field(
        None, description="Floating-point operations a second of its layers' products, measured where it was opened."
    )

    @property
    def linear_parameters(self) -> int:
        """Of all sites."""
        return sum(site.width_in * site.width_out for site in self.sites)

    @property
    def table_parameters(self) -> int:
        """Of the embeddings, and of a head of its own."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)


class ScheduleSpec(Spec):
    """How a run cuts its rows: which of them go forward together is a function of this and of their lengths."""

    n_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    tokens_per_batch: int = Field(ge=1, description="Of one forward, an ensemble's members counted.")
    seed: int = Field(ge=0)
    is_of_pairs: bool = Field(False, description="Whether two rows are one example, which counts twice: DPO's.")


class Largest(Spec):
    """The largest micro-batch that a run will meet; each figure is the greatest by itself."""

    tokens: int = Field(ge=0, description="N")
    learned: int = Field(ge=0, description="Of these tokens.")
    squares: int = Field(ge=0, description="Sum over its rows of their squared lengths.")
    longest_row: int = Field(ge=0, description="Tokens of the longest row of all.")


class Amount(Spec):
    """How much data a run has: of the training file in one epoch, and of the validation file."""

    tokens: int
    learned_tokens: int
    n_examples: int
    largest: Largest
    validation_tokens: int = 0


class Device(Spec):
    """Where training will run. memory_bytes: all that it has."""

    kind: Literal["cpu", "cuda"] = "cpu"
    memory_bytes: int


class Memory(Spec):
    """Bytes at the peak, by term: what each is, core/estimate.py says."""

    base_weights: int
    adapter: int
    activations: int
    loss_head: int
    process: int
    loading: int
    total: int


class Advice(Spec):
    """One knob that alone makes a job fit, what to turn it to, and what it then takes."""

    param: str
    value: JsonValue
    memory_bytes: int


class SearchCost(Spec):
    """What the search of a learning rate will take, before the run. share: of the run's own work."""

    candidates: int
    steps: int = Field(description="Of all candidates together.")
    tokens: int = Field(description="That they learn from.")
    judged_tokens: int = Field(description="That go forward alone, to judge them.")
    share: float
    seconds: float = Field(description="Among the estimate's seconds.")


class Estimate(Spec):
    """What a run will take. A job keeps it."""

    tokens: int = Field(description="Of all epochs.")
    learned_tokens: int
    validation_tokens: int = Field(description="Of one validation.")
    steps: int
    seconds: float
    seconds_range: tuple[float, float]
    seconds_basis: Basis = Field(
        description="Earlier jobs' pace on this base, the device's measured speed, or a guess."
    )
    memory: Memory
    activation_checkpointing: bool = Field(False, description="Whether that is of a run that runs its layers again.")
    activation_offload: bool = Field(False, description="And whose layers' inputs wait in host memory meanwhile.")
    memory_range: tuple[int, int] | None = Field(
        None, description="Between which the peak lies, as errors measured say."
    )
    adapter_bytes: int
    trainable_parameters: int
    device: Device | None = Field(description="None where no trainer has said what it has.")
    fits: bool | None = Field(
        description="False where even the least of memory_range exceeds the device; None where that is unknown."
    )
    warning: str | None = Field(None, description="Where the device's memory lies within memory_range.")
    advice: tuple[Advice, ...] = ()
    rate_search: SearchCost | None = Field(None, description="Where the learning rate is to be found.")


class Measured(Spec):
    """What a run took, beside its estimate. Of the attempt that finished it; seconds are from the job's first start."""

    memory_bytes: int = Field(description="At the peak.")
    seconds: float
    adapter_bytes: int
    tokens_per_s: float | None = Field(description="While it trained; None where this attempt made no step.")
