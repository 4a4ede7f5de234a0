"""What an engine is asked of a dataset's first rows, and what it answers: them token by token, and what ails them."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from core.specs.dataset import DatasetFormat
from core.specs.spec import Spec
from core.specs.template import Template

MAX_ROWS = 32
NOT_LEARNED = -100  # the label of a token that the loss does not ask for


class PreviewSpec(Spec):
    """POST /preview: exactly one of file_sha256 and rows. max_tokens: of a row that a job would take."""

    base_model: str
    file_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    rows: tuple[JsonValue, ...] | None = Field(None, description="Examples as lines of JSON would hold them.")
    template: Template | None = None
    prefix_length: int = Field(0, ge=0, description="Places that a prefix takes of the base model's context.")
    train_on: Literal["assistant", "last"] = "assistant"
    max_tokens: int = Field(ge=2)
    limit: int = Field(3, ge=1, le=MAX_ROWS)


class Finding(Spec):
    """What is wrong with a line, or odd about it. field: a JSON pointer, "" for the whole line."""

    line: int
    field: str
    code: str
    message: str


class PreviewToken(Spec):
    """One token. id: negative for a virtual token. label: the same id where it is learned, else -100.

    text: what it adds to the text; a character of several tokens stands with the last of them.
    """

    id: int
    text: str
    label: int


class PreviewRow(Spec):
    """One row as the base model sees it, cut behind max_tokens. part: of a preference pair."""

    line: int
    part: Literal["chosen", "rejected"] | None = None
    label: str | None = Field(None, description="The class of a classification row.")
    n_tokens: int
    n_learned: int
    truncated: bool = Field(description="It is shown cut short. A job would refuse it.")
    tokens: tuple[PreviewToken, ...]
    trained_spans: tuple[tuple[int, int], ...] = Field(description="Of tokens: first, and one behind the last.")


class Preview(Spec):
    """The first rows, and what was found in the first n_examined examples: errors stop a job, warnings do not."""

    format: DatasetFormat | None
    container: Literal["jsonl", "csv", "parquet"] | None
    context: int = Field(description="Tokens that the base model can attend to.")
    max_seq_length: int
    n_examined: int
    rows: tuple[PreviewRow, ...]
    n_errors: int
    errors: Annotated[tuple[Finding, ...], Field(max_length=100)]
    n_warnings: int
    warnings: Annotated[tuple[Finding, ...], Field(max_length=100)]
