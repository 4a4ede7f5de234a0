"""What clients may ask a model to read: texts for embeddings, labels behind a prompt. Each with its bounds."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from api.generation_request import (
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    MessageRequest,
    ModelName,
    Text,
    TokenId,
    refused_together,
)
from core.specs.generation import ChatMessage
from core.specs.method import BasePrecision
from core.specs.spec import Spec

MAX_INPUTS = 256
MAX_LABELS = 64

SomeText = Annotated[Text, StringConstraints(min_length=1)]
SomeIds = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class EmbeddingsRequest(Spec):
    """POST /v1/embeddings: one text or several, or their token ids."""

    model: ModelName
    input: (
        SomeText
        | Annotated[tuple[SomeText, ...], Field(min_length=1, max_length=MAX_INPUTS)]
        | SomeIds
        | Annotated[tuple[SomeIds, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: str | None = Field(None, max_length=512)
    base_precision: BasePrecision | None = None

    @property
    def is_base64(self) -> bool:
        """Whether vectors are to come as base64 of float32, little-endian."""
        return self.encoding_format == "base64"

    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """Each text by itself."""
        if isinstance(self.input, str):
            return (self.input,)
        if isinstance(self.input[0], int):
            return (self.input,)
        return self.input


class ClassifyRequest(Spec):
    """POST /v1/classify: a conversation or a text, and what may stand behind it."""

    model: ModelName
    messages: Annotated[tuple[MessageRequest, ...], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    prompt: SomeText | None = None
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS)]
    per_token: bool = Field(False, description="Compare by the mean over a label's tokens, not by their sum.")
    base_precision: BasePrecision | None = None

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels):
            raise ValueError("each label may stand once")
        return labels

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise refused_together("messages", "give one of messages and prompt")
        return self

    def content(self) -> str | tuple[ChatMessage, ...]:
        """What the labels stand behind."""
        if self.messages is None:
            return self.prompt or ""
        return tuple(message.message() for message in self.messages)
