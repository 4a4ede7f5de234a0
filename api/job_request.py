"""POST /v1/fine_tuning/jobs as clients write it, in OpenAI's words and ours, and what it comes to."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints, model_validator

from api import errors
from core.specs.method import LoraSpec, MethodSpec
from core.specs.spec import Spec
from core.specs.training import HyperparametersRequest, TrainingRequest

T = TypeVar("T")

Suffix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataText = Annotated[str, StringConstraints(max_length=512)]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class SupervisedRequest(Spec):
    """method.supervised."""

    hyperparameters: HyperparametersRequest | None = None
    peft: MethodSpec | None = None


class LoraMethodRequest(LoraSpec):
    """method.lora, where a client writes the method's own name as the type."""

    hyperparameters: HyperparametersRequest | None = None

    def spec(self) -> LoraSpec:
        """The method alone."""
        return LoraSpec.model_validate(self.model_dump(exclude={"hyperparameters"}))


class MethodRequest(Spec):
    """OpenAI's method, or one of ours by its name."""

    type: Literal["supervised", "lora"]
    supervised: SupervisedRequest | None = None
    lora: LoraMethodRequest | None = None

    @model_validator(mode="after")
    def _of_its_type(self) -> "MethodRequest":
        for section in ("supervised", "lora"):
            if section != self.type and getattr(self, section) is not None:
                raise ValueError(f"type is '{self.type}' but the section '{section}' is given")
        return self


class JobRequest(Spec):
    """The whole body."""

    model: Reference
    training_file: Reference
    validation_file: Reference | None = None
    suffix: Suffix | None = None
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[MetadataKey, MetadataText] | None = Field(None, max_length=16)
    hyperparameters: HyperparametersRequest | None = None
    method: MethodRequest | None = None
    peft: MethodSpec | None = None
    training: TrainingRequest | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    def chosen_method(self) -> MethodSpec:
        """The method, wherever it was written. Raises ClientError 400 where two places disagree."""
        nested, where = None, "method"
        if self.method and self.method.supervised:
            nested, where = self.method.supervised.peft, "method.supervised.peft"
        elif self.method and self.method.lora:
            nested, where = self.method.lora.spec(), "method.lora"
        return _agreed(self.peft, nested, "peft", where) or LoraSpec()

    def chosen_hyperparameters(self) -> HyperparametersRequest:
        """OpenAI's three knobs, from the old place or the new. Raises ClientError 400 where they disagree."""
        section = self.method and (self.method.supervised or self.method.lora)
        nested = section.hyperparameters if section else None
        where = f"method.{self.method.type}.hyperparameters" if self.method else "method"
        return _agreed(self.hyperparameters, nested, "hyperparameters", where) or HyperparametersRequest()


def _agreed(first: T | None, second: T | None, where_first: str, where_second: str) -> T | None:
    if first is not None and second is not None and first != second:
        raise errors.bad_request(
            f"{where_first} and {where_second} disagree: write it in one place only.",
            param=where_second,
            code="conflicting_parameters",
        )
    return first if second is None else second
