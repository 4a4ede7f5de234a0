"""The methods a customer may ask for, side by side. Field names are those of Hugging Face PEFT."""

from typing import Annotated, Literal

from pydantic import Field

from core.specs.spec import Spec

ModuleName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]


class LoraSpec(Spec):
    """Low-rank updates of chosen linear layers. Hu et al. 2021, arXiv:2106.09685."""

    type: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, le=256, description="Rank of each update.")
    lora_alpha: float = Field(32.0, gt=0, le=4096, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the update's input, while training.")
    target_modules: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        "all-linear", description="Last parts of layer names, or all linear layers but the output head."
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) instead. Kalajdzievski 2023.")


# Issue by issue more methods join this union; a discriminated union needs at least two, so it is one type until then.
MethodSpec = LoraSpec
