"""POST /v1/fine_tuning/jobs as clients write it, in OpenAI's words and ours, and what it comes to."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from api import errors
from core.specs.method import LoraSpec, MethodSpec
from core.specs.spec import Spec
from core.specs.training import DPO, DPOHyperparametersRequest, HyperparametersRequest, TrainingRequest

T = TypeVar("T")
METHOD: TypeAdapter[MethodSpec] = TypeAdapter(MethodSpec)

Suffix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataText = Annotated[str, StringConstraints(max_length=512)]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class SupervisedRequest(Spec):
    """method.supervised."""

    hyperparameters: HyperparametersRequest | None = None
    peft: MethodSpec | None = None

    @property
    def knobs(self) -> HyperparametersRequest | None:
        """OpenAI's three, where any is said."""
        return self.hyperparameters


class DPORequest(Spec):
    """method.dpo."""

    hyperparameters: DPOHyperparametersRequest | None = None
    peft: MethodSpec | None = None

    @property
    def knobs(self) -> HyperparametersRequest | None:
        """OpenAI's three, where any is said."""
        return self.hyperparameters and self.hyperparameters.knobs

    @property
    def spec(self) -> DPO:
        """Every "auto" made a number."""
        beta = self.hyperparameters.beta if self.hyperparameters else "auto"
        return DPO() if beta == "auto" else DPO(beta=beta)


class PeftMethodRequest(BaseModel):
    """method.lora and its kin: hyperparameters, and the fields of the method, whose name is the type."""

    model_config = ConfigDict(extra="allow", frozen=True)

    hyperparameters: HyperparametersRequest | None = None

    @property
    def knobs(self) -> HyperparametersRequest | None:
        """OpenAI's three, where any is said."""
        return self.hyperparameters

    @property
    def fields(self) -> dict[str, Any]:
        """What is said of the method itself."""
        return self.model_extra or {}


Section = SupervisedRequest | DPORequest | PeftMethodRequest


class MethodRequest(Spec):
    """OpenAI's method, or one of ours by its name."""

    type: Literal["supervised", "dpo", "lora", "qlora", "adalora", "prefix_tuning", "prompt_tuning", "p_tuning"]
    supervised: SupervisedRequest | None = None
    dpo: DPORequest | None = None
    lora: PeftMethodRequest | None = None
    qlora: PeftMethodRequest | None = None
    adalora: PeftMethodRequest | None = None
    prefix_tuning: PeftMethodRequest | None = None
    prompt_tuning: PeftMethodRequest | None = None
    p_tuning: PeftMethodRequest | None = None

    @model_validator(mode="after")
    def _of_its_type(self) -> "MethodRequest":
        for section in type(self).model_fields:
            if section not in ("type", self.type) and getattr(self, section) is not None:
                raise ValueError(f"type is '{self.type}' but the section '{section}' is given")
        return self

    @property
    def section(self) -> Section | None:
        """The one that the type names."""
        chosen: Section | None = getattr(self, self.type)
        return chosen

    @property
    def is_peft(self) -> bool:
        """Whether the type is a method's name; else the method stands in the section's peft, or elsewhere."""
        return self.type not in ("supervised", "dpo")

    @property
    def says_method(self) -> bool:
        """Whether the section tells of a method."""
        if isinstance(self.section, SupervisedRequest | DPORequest):
            return self.section.peft is not None
        return self.section is not None

    def spec(self) -> MethodSpec | None:
        """The method, where it is written here. Raises ClientError 400, which names the field."""
        if isinstance(self.section, SupervisedRequest | DPORequest):
            return self.section.peft
        if not self.is_peft:
            return None
        fields = self.section.fields if self.section else {}
        try:
            return METHOD.validate_python({"type": self.type, **fields})
        except ValidationError as error:
            problems = [problem | {"loc": ("body", "method", self.type, *problem["loc"])} for problem in error.errors()]
            raise errors.of_validation(problems, {"method": {self.type: fields}}) from error


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
    continue_from: Reference | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def says_method(self) -> bool:
        """Whether a method is written anywhere."""
        return self.peft is not None or (self.method is not None and self.method.says_method)

    def chosen_method(self) -> MethodSpec:
        """The method, wherever it was written. Raises ClientError 400 where two places disagree."""
        if self.method is None:
            return self.peft or LoraSpec()
        if self.peft and self.method.section is None and self.method.type == self.peft.type:
            return self.peft
        where = f"method.{self.method.type}" if self.method.is_peft else f"method.{self.method.type}.peft"
        return _agreed(self.peft, self.method.spec(), "peft", where) or LoraSpec()

    def chosen_hyperparameters(self) -> HyperparametersRequest:
        """OpenAI's three knobs, from the old place or the new. Raises ClientError 400 where they disagree."""
        section = self.method and self.method.section
        nested = section.knobs if section else None
        where = f"method.{self.method.type}.hyperparameters" if self.method else "method"
        return _agreed(self.hyperparameters, nested, "hyperparameters", where) or HyperparametersRequest()

    def chosen_dpo(self) -> DPO | None:
        """Of a job that is to learn from pairs."""
        if self.method is None or self.method.type != "dpo":
            return None
        return (self.method.dpo or DPORequest()).spec


def _agreed(first: T | None, second: T | None, where_first: str, where_second: str) -> T | None:
    if first is not None and second is not None and first != second:
        raise errors.bad_request(
            f"{where_first} and {where_second} disagree: write it in one place only.",
            param=where_second,
            code="conflicting_parameters",
        )
    return first if second is None else second
