"""What an engine is asked of a stranger's adapter, and what it answers: the contract of POST /inspect."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from core.specs.method import Alpha, BasePrecision, Rank
from core.specs.spec import Spec

SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Part = Literal["q", "k", "v"]


class MergedLinearSpec(Spec):
    """What a file of microsoft/LoRA does not say of its layers: loralib.MergedLinear(r=, lora_alpha=, enable_lora=)."""

    r: Rank = Field(description="Rank of each part.")
    alpha: Alpha = Field(description="The update is scaled by alpha / r.")
    enable: tuple[Part, ...] = Field(("q", "v"), min_length=1, max_length=3, description="Parts of c_attn it changes.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if list(self.enable) != sorted(set(self.enable), key="qkv".index):
            raise ValueError(f"enable is {','.join(self.enable)}; q, k and v are expected in this order, each once")
        return self


class InspectSpec(Spec):
    """POST /inspect: read the blob as an adapter of this base model and keep it in our normal form.

    merged_linear goes with loralib files only. base_precision is what the adapter was trained beside.
    """

    base_model: str
    file_sha256: SHA256
    format: Literal["peft", "loralib"] = "peft"
    base_precision: BasePrecision = "bf16"
    merged_linear: MergedLinearSpec | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.format == "loralib") != (self.merged_linear is not None):
            raise ValueError("merged_linear goes with the format loralib, and only with it")
        return self


class Inspected(Spec):
    """The answer: the adapter as it now lies in the store."""

    sha256: SHA256
    size_bytes: int = Field(ge=1)
    peft_type: str = Field(max_length=32)
    parameters: int = Field(ge=1)
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = Field(description="For the registry, as details of a trained adapter.")
