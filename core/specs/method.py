"""The methods a customer may ask for, side by side. Field names are those of Hugging Face PEFT where it has one."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.specs.spec import Spec
from core.specs.template import Template, in_front, parse

Auto = Literal["auto"]
ModuleName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]
Words = Annotated[str, Field(min_length=1, max_length=4096)]
BasePrecision = Literal["bf16", "nf4"]
Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[float, Field(gt=0, le=4096)]

BASE_PRECISION = "Of the frozen base while training and serving: 16 bit, or 4 bit (NF4, double quantisation)."


class BaseMethodSpec(Spec):
    """What all methods share."""

    base_precision: BasePrecision = Field("bf16", description=BASE_PRECISION)

    @property
    def row_template(self) -> Template | None:
        """Where its rows' virtual tokens stand; None for a method without any."""
        return None

    @property
    def prefix_length(self) -> int:
        """How much of the context it takes beside what stands in its rows: a prefix's keys and values."""
        return 0

    @property
    def members(self) -> int:
        """How many rows answer one request: one, but for an ensemble."""
        return 1

    def must_fit(self, steps: int) -> None:
        """Raise ValueError if a run of so many steps cannot learn this."""

    @property
    def starts_from(self) -> str | None:
        """The name or id of the adapter that it starts from, if it does."""
        return None

    def idle(self) -> tuple[str, str] | None:
        """A field that was given a value of its own and does nothing beside the others, and what it would need."""
        return next(((name, needs) for name, needs in self._needs() if self._is_own(name)), None)

    def _needs(self) -> tuple[tuple[str, str], ...]:
        """The fields that do nothing beside the others, and what each would need."""
        return ()

    def _is_own(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


class LoraSpec(BaseMethodSpec):
    """Low-rank updates of chosen linear layers. Hu et al. 2021, arXiv:2106.09685."""

    type: Literal["lora"] = "lora"
    r: Rank = Field(16, description="Rank of each update.")
    lora_alpha: Alpha = Field(32.0, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the update's input, while training.")
    target_modules: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        "all-linear",
        description="Last parts of layer names, the token embeddings' too, or all linear layers but the output head.",
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) instead. Kalajdzievski 2023.")
    rank_pattern: dict[ModuleName, Rank] = Field(
        default_factory=dict, max_length=1000, description="Layer name, or its end: rank in place of r."
    )
    alpha_pattern: dict[ModuleName, Alpha] = Field(
        default_factory=dict, max_length=1000, description="Layer name, or its end: alpha in place of lora_alpha."
    )
    loraplus_lr_ratio: float = Field(
        1.0, ge=1, le=64, description="Learning rate of B over that of A. Hayou et al. 2024, LoRA+."
    )
    use_dora: bool = Field(False, description="Learn each output's magnitude too. Liu et al. 2024, DoRA.")
    init_lora_weights: Literal["kaiming", "gaussian", "pissa", "olora"] = Field(
        "kaiming", description="How A and B start: B at zero, or from the base weight's SVD (pissa) or QR (olora)."
    )


class QLoraSpec(LoraSpec):
    """LoRA beside a base in NF4 with double quantisation. Dettmers et al. 2023, arXiv:2305.14314."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # the discriminator of the union
    base_precision: Literal["nf4"] = Field("nf4", description="Always 4 bit: it is what makes it QLoRA.")


class AdaLoraSpec(BaseMethodSpec):
    """Updates P Λ Q whose ranks a budget spreads over the layers. Zhang et al. 2023, arXiv:2303.10512."""

    type: Literal["adalora"] = "adalora"
    init_r: Rank = Field(12, description="Rank of every layer at first.")
    target_r: Rank = Field(8, description="Mean rank of a layer at the end.")
    lora_alpha: Alpha = Field(32.0, description="The update is scaled by lora_alpha / init_r, to the end.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the update's input, while training.")
    target_modules: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        "all-linear", description="Last parts of layer names, or all linear layers but the output head."
    )
    tinit: Auto | int = Field("auto", description="Steps before ranks fall; 'auto' is a tenth of all.")
    tfinal: Auto | int = Field("auto", description="Steps at the end, ranks at rest; 'auto' is three tenths of all.")
    deltaT: int = Field(1, ge=1, le=10_000, description="Steps between two allocations.")  # noqa: N815 - PEFT's name
    beta1: float = Field(0.85, gt=0, lt=1, description="Smoothing of the sensitivity.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Smoothing of its uncertainty.")
    orth_reg_weight: float = Field(0.1, ge=0, le=10, description="Weight of the penalty that keeps P and Q orthogonal.")
    orthogonality: Literal["norm", "squared"] = Field(
        "norm", description="The penalty: mean Frobenius norms, as the authors' code, or their squares, as the paper."
    )
    official_ties: bool = Field(False, description="Prune every triplet that ties with the last, as the authors' code.")
    export_as: Literal["lora", "adalora"] = Field(
        "lora", description="The adapter's file: LoRA of many ranks, which every reader knows, or PEFT's own ADALORA."
    )

    def phases(self, steps: int) -> tuple[int, int]:
        """The tinit and tfinal of a run of so many steps. Raises ValueError where none would be left to prune in."""
        tinit = steps // 10 if self.tinit == "auto" else self.tinit
        tfinal = 3 * steps // 10 if self.tfinal == "auto" else self.tfinal
        if tinit >= steps - tfinal:
            raise ValueError(
                f"tinit {tinit} and tfinal {tfinal} leave none of the {steps} steps to prune in: lower them, or leave "
                "them 'auto'"
            )
        return tinit, tfinal

    def must_fit(self, steps: int) -> None:
        """As phases."""
        self.phases(steps)

    @model_validator(mode="after")
    def _only_prunes(self) -> Self:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r {self.target_r} exceeds init_r {self.init_r}: AdaLoRA only prunes")
        for name in ("tinit", "tfinal"):
            steps = getattr(self, name)
            if steps != "auto" and not 0 <= steps <= 10_000_000:  # noqa: PLR2004
                raise ValueError(f"{name} {steps} is not 'auto' and not between 0 and 10000000")
        return self


class PrefixTuningSpec(BaseMethodSpec):
    """Learned keys and values before every row, in every layer. Li and Liang 2021, arXiv:2101.00190."""

    type: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: int = Field(16, ge=1, le=512, description="Length of the prefix.")
    parametrization: Literal["kv", "mlp", "hidden"] = Field(
        "mlp",
        description="What is learned: keys and values themselves, an MLP that makes them (the paper), or hidden "
        "states that pass through the base's own key and value layers.",
    )
    encoder_hidden_size: int = Field(512, ge=8, le=8192, description="Width of the MLP.")
    prefix_init: Literal["random", "text"] = Field("random", description="At random, or from the base's own reading.")
    prefix_init_text: Words | None = Field(
        None, description="The words of prefix_init 'text'; read again and again where the prefix is longer."
    )
    fit_steps: int = Field(
        500, ge=0, le=10_000, description="With an MLP and words: steps that first fit the MLP to them (low data)."
    )

    @model_validator(mode="after")
    def _words_where_needed(self) -> Self:
        if (self.prefix_init == "text") != (self.prefix_init_text is not None):
            raise ValueError("prefix_init 'text' needs prefix_init_text, and nothing else takes it")
        return self

    def _needs(self) -> tuple[tuple[str, str], ...]:
        found = [] if self.parametrization == "mlp" else [("encoder_hidden_size", "parametrization 'mlp'")]
        if self.parametrization != "mlp" or self.prefix_init != "text":
            found.append(("fit_steps", "parametrization 'mlp' and prefix_init 'text'"))
        return tuple(found)

    @property
    def prefix_length(self) -> int:
        """A place of the context for each."""
        return self.num_virtual_tokens


class PromptTuningSpec(BaseMethodSpec):
    """Learned embeddings in front of every row. Lester et al. 2021, arXiv:2104.08691."""

    type: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = Field(20, ge=1, le=512, description="Length of the prompt.")
    prompt_tuning_init: Literal["random", "vocab", "class_label", "text", "adapter"] = Field(
        "vocab",
        description="Uniform in [-0.5, 0.5], frequent words, the names of the classes, a text, or another prompt.",
    )
    prompt_tuning_init_text: Words | None = Field(None, description="The words of prompt_tuning_init 'text'.")
    class_labels: tuple[Words, ...] = Field((), max_length=512, description="Of prompt_tuning_init 'class_label'.")
    init_adapter: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="Of prompt_tuning_init 'adapter': a prompt-tuned model of yours, by name or id."
    )
    ensemble_size: int = Field(
        1, ge=1, le=16, description="Prompts learned side by side, which answer together by majority vote."
    )

    @model_validator(mode="after")
    def _start_is_given(self) -> Self:
        given = {"text": self.prompt_tuning_init_text, "class_label": self.class_labels, "adapter": self.init_adapter}
        fields = {"text": "prompt_tuning_init_text", "class_label": "class_labels", "adapter": "init_adapter"}
        for start, value in given.items():
            if bool(value) != (self.prompt_tuning_init == start):
                raise ValueError(f"prompt_tuning_init {start!r} needs {fields[start]}, and nothing else takes it")
        if len(self.class_labels) > self.num_virtual_tokens:
            raise ValueError(
                f"num_virtual_tokens {self.num_virtual_tokens} is less than {len(self.class_labels)} class_labels"
            )
        return self

    @model_validator(mode="after")
    def _members_differ(self) -> Self:
        leaves_some_to_chance = 0 < len(self.class_labels) < self.num_virtual_tokens
        is_drawn = leaves_some_to_chance or self.prompt_tuning_init in ("random", "vocab")
        if self.ensemble_size > 1 and not is_drawn:
            raise ValueError(
                f"ensemble_size {self.ensemble_size}: with prompt_tuning_init {self.prompt_tuning_init!r} all prompts "
                "would start alike, and stay alike; use 'random', 'vocab', or more virtual tokens than class_labels"
            )
        return self

    @property
    def row_template(self) -> Template:
        """All in front."""
        return in_front(self.num_virtual_tokens)

    @property
    def members(self) -> int:
        """A row for each prompt."""
        return self.ensemble_size

    @property
    def starts_from(self) -> str | None:
        """Of prompt_tuning_init 'adapter'."""
        return self.init_adapter


class PTuningSpec(BaseMethodSpec):
    """Embeddings from a small encoder, anywhere in a template. Liu et al. 2021, arXiv:2103.10385."""

    type: Literal["p_tuning"] = "p_tuning"
    template: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        "{v:20}{input}{target}",
        description="{v:3} is three virtual tokens, {input} the prompt, {target} the answer; all else is words.",
    )
    encoder_reparameterization_type: Literal["LSTM", "MLP"] = Field(
        "MLP", description="What makes the embeddings: an MLP, or a bidirectional LSTM and the MLP."
    )
    encoder_hidden_size: Auto | Annotated[int, Field(ge=8, le=8192)] = Field(
        "auto", description="Of the encoder, in each direction; 'auto' is half the base's width."
    )
    encoder_num_layers: int = Field(2, ge=1, le=4, description="Layers of the LSTM.")
    encoder_dropout: float = Field(0.0, ge=0, lt=1, description="Between the LSTM's layers, while training.")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        parse(self.template)
        return self

    def _needs(self) -> tuple[tuple[str, str], ...]:
        lstm = "encoder_reparameterization_type 'LSTM'"
        if self.encoder_reparameterization_type == "MLP":
            return ("encoder_num_layers", lstm), ("encoder_dropout", f"{lstm} of two layers or more")
        return () if self.encoder_num_layers > 1 else (("encoder_dropout", "encoder_num_layers of two or more"),)

    @property
    def row_template(self) -> Template:
        """As the job gives it."""
        return parse(self.template)


def _lora_unless_said(given: object) -> object:
    return {"type": "lora", **given} if isinstance(given, dict) else given


MethodSpec = Annotated[
    LoraSpec | QLoraSpec | AdaLoraSpec | PrefixTuningSpec | PromptTuningSpec | PTuningSpec,
    Field(discriminator="type"),
    BeforeValidator(_lora_unless_said),
]
SPECS = (LoraSpec, QLoraSpec, AdaLoraSpec, PrefixTuningSpec, PromptTuningSpec, PTuningSpec)
