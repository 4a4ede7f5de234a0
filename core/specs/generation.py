"""What may be asked of an engine, and what it answers: the one contract between the front end and its engines."""

from typing import Annotated, Literal

from pydantic import Field

from core.specs.estimate import ScheduleSpec
from core.specs.method import BasePrecision
from core.specs.spec import Spec
from core.specs.template import Template

MAX_SCHEMA_CHARACTERS = 1 << 16

FinishReason = Literal["stop", "length"]


class ChatMessage(Spec):
    """One turn of a conversation, as the base model's chat template takes it."""

    role: Literal["system", "user", "assistant"]
    content: str


class SamplingSpec(Spec):
    """How the next token is chosen. temperature 0 is greedy."""

    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000, description="0 keeps the whole vocabulary.")
    min_p: float = Field(0.0, ge=0, le=1, description="Tokens less likely than this share of the likeliest go.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Off each token drawn before.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="Off it once for each time.")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="Divides what was read or drawn; 1 does nothing.")
    logit_bias: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]], ...] = Field(
        (), max_length=1024, description="Pairs of a token's id and what is added to its logit."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Token t of a row is drawn with (seed, t), so a replay continues it."
    )
    max_tokens: int = Field(256, ge=1, description="At most this many new tokens.")
    stop: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field((), max_length=4)


class AdapterRef(Spec):
    """An adapter by its content: id for people, sha256 of its zip for machines. member: which one of an ensemble."""

    id: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    member: int | None = Field(None, ge=0)


class QueueSpec(Spec):
    """Whose request it is, and how it waits for a place beside those of others."""

    tenant: str = Field(
        "",
        max_length=64,
        description="Names who asks without saying who. Places go by it; without one, prompts are not kept.",
    )
    weight: float = Field(1.0, gt=0, le=1000, description="The tenant's part beside that of others who wait.")
    priority: int = Field(0, ge=-1, le=1, description="Each class is served eight times as much as the next below it.")
    deadline_s: float | None = Field(None, gt=0, description="From its acceptance; past it the request ends.")


class ReadSpec(Spec):
    """Nothing is to be drawn, but said of the prompt: one frame. embedding: the mean of its tokens' hidden states.

    likelihood: how likely the model held each of its tokens; with an answer, each token of that instead, behind the
    prompt as a training example has it.
    """

    what: Literal["embedding", "likelihood"]
    answer: str | None = Field(None, min_length=1)


class GenerateSpec(Spec):
    """POST /generate: exactly one of messages, prompt and prompt_ids says what to continue."""

    request_id: str
    base_model: str
    base_precision: BasePrecision = Field("bf16", description="Of the base that the engine must have opened.")
    adapter: AdapterRef | None = None
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = Field(
        None, description="A replay: the first frame's ids plus all emitted since."
    )
    offset: int = Field(0, ge=0, description="How many of prompt_ids were already emitted as new tokens.")
    sampling: SamplingSpec
    queue: QueueSpec = QueueSpec()
    with_logprob: bool = Field(False, description="Say in every frame how likely its tokens were.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Say of every token how likely the model held it, and so many of the likeliest."
    )
    json_schema: str | None = Field(
        None, max_length=MAX_SCHEMA_CHARACTERS, description="What is drawn is JSON that validates against it."
    )
    read: ReadSpec | None = None
    affinity: str | None = Field(None, description="Requests of one affinity go to one engine where they can.")


class Choice(Spec):
    """A token, and the logarithm of the probability that the model itself gave it, at temperature 1."""

    id: int
    bytes: tuple[int, ...]  # what it writes, which need not be whole characters
    logprob: float


class Likelihood(Spec):
    """One token that stands in a row, beside those that the model held likeliest there.

    logprob: None of the first token of a row, which nothing foretells.
    """

    id: int
    bytes: tuple[int, ...]
    logprob: float | None = None  # what is None does not go over the wire
    top: tuple[Choice, ...] = ()


class Frame(Spec):
    """One line of the engine's answer. seq counts from 0 without gaps; the first frame alone carries prompt_ids.

    text is what these ids add, UTF-8 safe and with stop strings already held back or cut. logprob is the sum of the
    logarithms of the probabilities with which these ids were drawn, where the request asks for it; at temperature 0,
    of those that the model gave them.
    """

    seq: int
    ids: tuple[int, ...] = ()
    text: str = ""
    fin: FinishReason | None = None
    prompt_ids: tuple[int, ...] | None = None
    error: "FrameError | None" = None
    logprob: float | None = None
    likelihoods: tuple[Likelihood, ...] | None = Field(None, description="Of its ids but for one that ends the answer.")
    embedding: str | None = Field(None, description="Base64 of float32, little-endian, of length 1.")


class FrameError(Spec):
    """A request's own end in failure: other rows of the batch go on."""

    code: str
    message: str
    param: str | None = None
    retryable: bool = False


class MeasureSpec(Spec):
    """POST /measure: how many tokens each example of a dataset has for this base model.

    Answer: {"tokens": int, "learned_tokens": int, "n_examples": int, "context": int, "too_long": [{"line": int,
    "tokens": int}], "shape": BaseShape, "largest": Largest} with the first 100 lines that exceed max_tokens; largest
    is null without a schedule. With first, "lengths": [int] as well, the tokens of each row.
    """

    base_model: str
    file_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    max_tokens: int | None = None
    template: Template | None = Field(None, description="Virtual tokens and anchors count among a row's tokens.")
    train_on: Literal["assistant", "last"] = "assistant"
    schedule: ScheduleSpec | None = Field(None, description="Of a run, whose largest micro-batch is asked for.")
    first: int | None = Field(
        None, ge=1, le=5000, description="Only so many examples, and each row's length with them."
    )
