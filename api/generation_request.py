"""What clients may ask a model for: OpenAI's fields with our bounds, each checked before any engine sees it."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from api.response_format import ResponseFormat
from core.specs.generation import ChatMessage, SamplingSpec
from core.specs.method import BasePrecision
from core.specs.spec import Spec

MAX_MESSAGES = 256
MAX_PROMPTS = 8
MAX_MODELS = 8
MAX_NEW_TOKENS = 4096
MAX_PROMPT_TOKENS = 131_072
MAX_TEXT_CHARACTERS = 1 << 20
DEFAULT_NEW_TOKENS = 256

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]

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
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "best_of": (None, 1),
    "suffix": (None, ""),
}


class StreamOptions(Spec):
    """stream_options."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class GenerationRequest(BaseModel):
    """What chats, plain completions and comparisons share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024)] | None = None
    response_format: ResponseFormat | None = None
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

    @model_validator(mode="after")
    def _whole_json(self) -> Self:
        if self.stop and self.json_schema is not None:
            raise refused_together("stop", "stop would cut the JSON that response_format asks for: leave one out")
        return self

    @property
    def json_schema(self) -> str | None:
        """What the answer is to validate against, as text."""
        return self.response_format.json_schema_text() if self.response_format else None

    @property
    def n_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell of beside each; None where no likelihood is asked for."""
        return None

    def sampling(self, seed: int) -> SamplingSpec:
        """With OpenAI's defaults where nothing is said."""
        stop = (self.stop,) if isinstance(self.stop, str) else (self.stop or ())
        return SamplingSpec(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
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
    def honoured_tier(self) -> str:
        """The `service_tier` that an answer tells: what it was served at, whatever was asked for."""
        return "flex" if self.priority < 0 else "default"

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


def refused_together(field: str, words: str) -> PydanticCustomError:
    """Two fields that do not go together; field is the one to be named."""
    return PydanticCustomError("unsupported_parameter", words, {"field": field})


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


Turns = Annotated[tuple[MessageRequest, ...], Field(min_length=1, max_length=MAX_MESSAGES)]


class Conversation(GenerationRequest):
    """What is continued as a chat."""

    messages: Turns
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)

    def new_tokens(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> tuple[ChatMessage, ...]:
        """As the base model's template takes it."""
        return tuple(message.message() for message in self.messages)


class ChatRequest(Conversation):
    """POST /v1/chat/completions."""

    model: ModelName
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _top_of_something(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refused_together("top_logprobs", "top_logprobs goes with logprobs: true")
        return self

    @property
    def n_top_logprobs(self) -> int | None:
        """As OpenAI has it: logprobs asks, top_logprobs says how many."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompareRequest(Conversation):
    """POST /v1/compare: several models, one conversation or each its own."""

    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=MAX_MODELS)]
    messages: Annotated[tuple[MessageRequest, ...], Field(max_length=MAX_MESSAGES)] = ()
    conversations: Annotated[tuple[Turns, ...], Field(max_length=MAX_MODELS)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None

    @model_validator(mode="after")
    def _something_for_each(self) -> Self:
        if bool(self.messages) == (self.conversations is not None):
            words = "give either messages, which all models answer, or conversations, one for each of models"
            raise refused_together("messages", words)
        if self.conversations is not None and len(self.conversations) != len(self.models):
            words = f"give one conversation for each of the {len(self.models)} models; found {len(self.conversations)}"
            raise refused_together("conversations", words)
        return self

    def asked(self) -> tuple[tuple[ChatMessage, ...], ...]:
        """What each model is to answer, in the order of models."""
        if self.conversations is None:
            return (self.conversation(),) * len(self.models)
        return tuple(tuple(turn.message() for turn in turns) for turns in self.conversations)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: one text, a few texts, or one prompt as token ids."""

    model: ModelName
    max_tokens: int | None = Field(None, ge=0, le=MAX_NEW_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None

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

    @model_validator(mode="after")
    def _something_to_say(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise refused_together("max_tokens", "max_tokens may be 0 only with echo: true")
        return self

    @property
    def n_top_logprobs(self) -> int | None:
        """A number asks."""
        return self.logprobs
