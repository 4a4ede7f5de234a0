"""What one line of a training file may say: a conversation, or a prompt and its completion."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.specs.spec import Spec

DatasetFormat = Literal["chat", "prompt_completion"]
Role = Literal["system", "user", "assistant"]
MAX_TURNS = 1024


class Turn(Spec):
    """One turn of a conversation. weight 0 keeps an assistant's turn as context that is not learned."""

    role: Role
    content: str
    weight: Annotated[int, Field(strict=True, ge=0, le=1)] | None = None

    @field_validator("content")
    @classmethod
    def _answers(cls, content: str, turn: ValidationInfo) -> str:
        if turn.data.get("role") == "assistant" and not content.strip():
            raise PydanticCustomError(
                "empty_content", "an assistant's turn is empty: there is nothing to learn from it"
            )
        return content

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
        if not messages:
            raise PydanticCustomError(
                "empty_messages", "a conversation needs at least a user's and an assistant's turn"
            )
        if messages[-1].role != "assistant":
            at = f"/messages/{len(messages) - 1}/role"
            raise PydanticCustomError("last_turn", "the last turn must be the assistant's", {"at": at})
        if not any(turn.role == "user" for turn in messages):
            raise PydanticCustomError("no_user_turn", "a conversation needs at least one user's turn")
        if not any(turn.is_learned for turn in messages):
            raise PydanticCustomError("nothing_to_learn", "every assistant's turn has weight 0: nothing is learned")
        return messages


class PromptExample(Spec):
    """A text and what should follow it. The completion is learned, the prompt is not."""

    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


Example = ChatExample | PromptExample
