"""What one example of a training file may say: seven formats, side by side. Knows no file and no tokeniser.

An example that was written in another format's words is what it means: an instruction and a ShareGPT conversation are
conversations, so that they are trained on and served as such.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.specs.spec import Spec

DatasetFormat = Literal["chat", "prompt_completion", "instruction", "sharegpt", "preference", "classification", "text"]
Role = Literal["system", "user", "assistant"]
MAX_TURNS = 1024
LABEL_MARK = "\nLabel:"  # between a text and its label; a client that asks for a label sends it too


class Turn(Spec):
    """One turn of a conversation. weight 0 keeps an assistant's turn as context that is not learned."""

    role: Role
    content: str
    weight: Annotated[int, Field(strict=True, ge=0, le=1)] | None = None

    @field_validator("content")
    @classmethod
    def _answers(cls, content: str, turn: ValidationInfo) -> str:
        return _spoken(content, is_answer=turn.data.get("role") == "assistant")

    @field_validator("weight")
    @classmethod
    def _weighs_answers_only(cls, weight: int | None, turn: ValidationInfo) -> int | None:
        if weight is not None and turn.data.get("role") in ("system", "user"):
            raise PydanticCustomError("misplaced_weight", "only an assistant's turn may carry a weight")
        return weight

    @property
    def is_learned(self) -> bool:
        """An assistant's turn whose weight is not 0."""
        return self.role == "assistant" and self.weight != 0


class ChatExample(Spec):
    """A conversation that ends with the assistant, in OpenAI's shape."""

    messages: Annotated[tuple[Turn, ...], Field(max_length=MAX_TURNS)]

    @field_validator("messages")
    @classmethod
    def _teaches(cls, messages: tuple[Turn, ...]) -> tuple[Turn, ...]:
        _converse([turn.role for turn in messages], "/messages/{}/role")
        if not any(turn.is_learned for turn in messages):
            raise PydanticCustomError("nothing_to_learn", "every assistant's turn has weight 0: nothing is learned")
        return messages


class PromptExample(Spec):
    """A text and what should follow it. The completion is learned, the prompt is not."""

    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


class InstructionExample(Spec):
    """Alpaca's: what to do, perhaps with what, and the answer. text, its own prompt of all that, is not read."""

    instruction: Annotated[str, Field(min_length=1)]
    input: str | None = None
    output: str
    text: str | None = None

    @field_validator("output")
    @classmethod
    def _answers(cls, output: str) -> str:
        return _spoken(output, is_answer=True)

    def meaning(self) -> ChatExample:
        """A user who gives the instruction, a blank line and the input, and the assistant's answer."""
        asked = f"{self.instruction}\n\n{self.input}" if (self.input or "").strip() else self.instruction
        return ChatExample(messages=(Turn(role="user", content=asked), Turn(role="assistant", content=self.output)))


Speaker = Literal["system", "human", "user", "gpt", "assistant"]
_ROLES: dict[Speaker, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class ShareGPTTurn(Spec):
    """One turn in ShareGPT's words."""

    speaker: Annotated[Speaker, Field(alias="from")]
    value: str

    @field_validator("value")
    @classmethod
    def _answers(cls, value: str, turn: ValidationInfo) -> str:
        return _spoken(value, is_answer=turn.data.get("speaker") in ("gpt", "assistant"))


class ShareGPTExample(Spec):
    """A conversation in ShareGPT's words. id is for its owner alone."""

    conversations: Annotated[tuple[ShareGPTTurn, ...], Field(max_length=MAX_TURNS)]
    system: str | None = None
    id: Any = None

    @field_validator("conversations")
    @classmethod
    def _teaches(cls, conversations: tuple[ShareGPTTurn, ...]) -> tuple[ShareGPTTurn, ...]:
        _converse([_ROLES[turn.speaker] for turn in conversations], "/conversations/{}/from")
        return conversations

    def meaning(self) -> ChatExample:
        """The same conversation in OpenAI's words."""
        opening = (Turn(role="system", content=self.system),) if self.system else ()
        turns = (Turn(role=_ROLES[turn.speaker], content=turn.value) for turn in self.conversations)
        return ChatExample(messages=(*opening, *turns))


class PreferenceInput(Spec):
    """What both answers of a preference pair answer. Tools are not known here, so none may be offered."""

    messages: Annotated[tuple[Turn, ...], Field(max_length=MAX_TURNS)]
    tools: Annotated[tuple[Any, ...], Field(max_length=0)] = ()
    parallel_tool_calls: bool | None = None

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if not messages or messages[-1].role != "user":
            at = f"/input/messages/{len(messages) - 1}/role" if messages else "/input/messages"
            raise PydanticCustomError("last_turn", "the input must end with a user's turn", {"at": at})
        return messages


class PreferenceExample(Spec):
    """Two answers to one conversation, the better first: the shape in which OpenAI takes preference pairs."""

    input: PreferenceInput
    preferred_output: tuple[Turn, ...]
    non_preferred_output: tuple[Turn, ...]

    @field_validator("preferred_output", "non_preferred_output")
    @classmethod
    def _is_one_answer(cls, output: tuple[Turn, ...], which: ValidationInfo) -> tuple[Turn, ...]:
        if len(output) != 1 or output[0].role != "assistant":
            found = ", ".join(turn.role for turn in output[:4]) or "none"
            message = "must hold one turn, the assistant's; found: {found}"
            raise PydanticCustomError("one_answer", message, {"at": f"/{which.field_name}", "found": found})
        return output

    @model_validator(mode="after")
    def _prefers(self) -> "PreferenceExample":
        if self.preferred_output[0].content == self.non_preferred_output[0].content:
            message = "both answers are the same: neither can be preferred"
            raise PydanticCustomError("same_answers", message, {"at": "/non_preferred_output/0/content"})
        return self

    def meanings(self) -> tuple[ChatExample, ChatExample]:
        """The conversation with the preferred answer, and with the other. Only that answer is learned."""
        asked = tuple(
            turn.model_copy(update={"weight": 0}) if turn.role == "assistant" else turn for turn in self.input.messages
        )
        better, worse = (
            ChatExample(messages=(*asked, Turn(role="assistant", content=output[0].content)))
            for output in (self.preferred_output, self.non_preferred_output)
        )
        return better, worse


class ClassificationExample(Spec):
    """A text and the name of its class. A whole number is taken as its digits."""

    text: Annotated[str, Field(min_length=1)]
    label: str

    @field_validator("label", mode="before")
    @classmethod
    def _numbered(cls, label: object) -> object:
        return str(label) if type(label) is int else label

    @field_validator("label")
    @classmethod
    def _named(cls, label: str) -> str:
        if not label.strip():
            raise PydanticCustomError("empty_content", "the label is empty: there is nothing to learn from it")
        return label

    def meaning(self) -> PromptExample:
        """The text and a mark, then a blank and the label, which is what is learned."""
        return PromptExample(prompt=self.text + LABEL_MARK, completion=f" {self.label}")


class TextExample(Spec):
    """A text, all of which is learned."""

    text: str

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise PydanticCustomError("empty_content", "the text is empty: there is nothing to learn from it")
        return text


AnyExample = (
    ChatExample
    | PromptExample
    | InstructionExample
    | ShareGPTExample
    | PreferenceExample
    | ClassificationExample
    | TextExample
)
Example = ChatExample | PromptExample | PreferenceExample | ClassificationExample | TextExample


def meaning(example: AnyExample) -> Example:
    """The example, less its format's own words where a conversation says the same."""
    return example.meaning() if isinstance(example, InstructionExample | ShareGPTExample) else example


def _spoken(content: str, *, is_answer: bool) -> str:
    if is_answer and not content.strip():
        raise PydanticCustomError("empty_content", "an assistant's turn is empty: there is nothing to learn from it")
    return content


def _converse(roles: Sequence[Role], place: str) -> None:
    """Raises PydanticCustomError unless a user asks and the assistant has the last word. place: of a role, by turn."""
    if not roles:
        raise PydanticCustomError("empty_messages", "a conversation needs at least a user's and an assistant's turn")
    if roles[-1] != "assistant":
        at = place.format(len(roles) - 1)
        raise PydanticCustomError("last_turn", "the last turn must be the assistant's", {"at": at})
    if "user" not in roles:
        raise PydanticCustomError("no_user_turn", "a conversation needs at least one user's turn")


def misfit(found: str, *, is_dpo: bool) -> str | None:
    """Why a file of this format is nothing for such a job, and what to do; None where it fits."""
    if is_dpo and found != "preference":
        return (
            f"dpo learns from preference pairs, and the file is of format {found}: give rows of input, "
            "preferred_output and non_preferred_output, or leave the method type 'dpo' out"
        )
    if found == "preference" and not is_dpo:
        return (
            "the file holds preference pairs, from which only dpo learns: "
            "ask for the method type 'dpo', or give conversations or prompts with their answers"
        )
    return None
