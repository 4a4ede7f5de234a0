"""What clients may ask a model for: OpenAI's fields with our bounds, each checked before any engine sees it."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from core.specs.generation import ChatMessage, SamplingSpec
from core.specs.method import BasePrecision
from core.specs.spec import Spec

MAX_MESSAGES = 256
MAX_PROMPTS = 8
MAX_NEW_TOKENS = 4096
MAX_PROMPT_TOKENS = 131_072
MAX_TEXT_CHARACTERS = 1 << 20
DEFAULT_NEW_TOKENS = 256

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

# OpenAI's fields that change nothing here: they are taken, bounded, and left.
IGNORED: Final = frozenset(
    {"user", "store", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Fields that would change the answer and are not offered: only a value that asks for nothing is taken.
NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}


class StreamOptions(Spec):
    """stream_options."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class GenerationRequest(BaseModel):
    """What chats and plain completions share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000)
    n: int | None = Field(None, ge=1, le=4)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: StopText | Annotated[tuple[StopText, ...], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    base_precision: BasePrecision | None = None
    service_tier: Annotated[str, StringConstraints(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_offered(cls, body: Any) -> Any:  # noqa: ANN401
        if not isinstance(body, dict):
            return body
        for field, neutral in NEUTRAL.items():
            if field in body and not any(body[field] == value for value in neutral):
                words = "this field is not supported here: leave it out"
                raise PydanticCustomError("unsupported_parameter", words, {"field": field})
        return {key: value for key, value in body.items() if key not in NEUTRAL and key not in IGNORED}

    def sampling(self, seed: int) -> SamplingSpec:
        """With OpenAI's defaults where nothing is said."""
        stop = (self.stop,) if isinstance(self.stop, str) else (self.stop or ())
        return SamplingSpec(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=seed,
            max_tokens=self.new_tokens() or DEFAULT_NEW_TOKENS,
            stop=stop,
        )

    def new_tokens(self) -> int | None:
        """At most so many, where the client says."""
        return self.max_tokens

    @property
    def priority(self) -> int:
        """Of its class: who asks for `flex` lets others go first, and no word lets anybody go before them."""
        return -1 if self.service_tier == "flex" else 0

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Spec):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text


class MessageRequest(BaseModel):
    """One turn. `developer` is what OpenAI now calls the system."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[tuple[TextPart, ...], Field(min_length=1, max_length=64)]
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    refusal: None = None
    tool_calls: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[tuple[Any, ...], Field(max_length=0)] | None = None

    def message(self) -> ChatMessage:
        """As the base model's template takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=content)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[MessageRequest, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)

    def new_tokens(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: one text, a few texts, or one prompt as token ids."""

    prompt: (
        Annotated[Text, StringConstraints(min_length=1)]
        | Annotated[
            tuple[Annotated[Text, StringConstraints(min_length=1)], ...], Field(min_length=1, max_length=MAX_PROMPTS)
        ]
        | Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]
    )

    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (self.prompt,)
        return self.prompt
