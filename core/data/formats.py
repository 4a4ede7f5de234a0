"""Bytes of an uploaded JSON Lines file to examples; every fault names its line and field. Knows no tokeniser.

A file is UTF-8 without a byte order mark, one JSON object a line, all of one format: that of the first good line.
Blank lines are skipped, but counted. A line holds at most MAX_LINE_BYTES, a file at most MAX_LINES lines. Memory does
not grow with the file, and no bytes make check() raise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.data.json_lines import (
    MAX_LINE_BYTES,
    MalformedLineError,
    lines,
    may_hide_surrogates,
    name,
    parse,
    pointer,
    see,
)
from core.specs.dataset import MAX_TURNS, ChatExample, DatasetFormat, Example, PromptExample

MAX_LINES = 5_000_000
MAX_FAULTS_KEPT = 100

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# How files begin that are mistaken for JSON Lines. All but the last two are binary.
_FOREIGN: Final = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"[": "a JSON array",
    b"<": "HTML or XML",
}
_CODES: Final = {
    "missing": ("missing_field", "this field is missing"),
    "extra_forbidden": ("unknown_field", "this field is not known here"),
    "string_type": ("wrong_type", "must be a string"),
    "tuple_type": ("wrong_type", "must be a list of turns"),
    "model_type": ("wrong_type", "must be an object with role and content"),
    "literal_error": ("wrong_role", "the role is not one of system, user, assistant"),
    "string_too_short": ("empty_content", "must not be empty"),
    "too_long": ("too_many_turns", f"a conversation holds at most {MAX_TURNS} turns"),
    "int_type": ("wrong_type", "weight must be 0 or 1"),
    "greater_than_equal": ("wrong_value", "weight must be 0 or 1"),
    "less_than_equal": ("wrong_value", "weight must be 0 or 1"),
}


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file. line counts from 1; field is a JSON pointer, "" for the whole line."""

    line: int
    field: str
    code: str
    message: str


@dataclass(frozen=True)
class DatasetReport:
    """What check() found. n_examples counts good lines, n_faults all faults; faults holds the first 100 of them."""

    format: DatasetFormat | None
    n_examples: int
    n_faults: int
    faults: tuple[Fault, ...]


class FaultyLineError(ValueError):
    """read() met a line that check() would have reported."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"line {fault.line}: {fault.field + ': ' if fault.field else ''}{fault.message}")
        self.fault = fault


def check(path: Path) -> DatasetReport:
    """Reads the whole file and reports every fault. Raises OSError alone."""
    file_format: DatasetFormat | None = None
    n_examples = n_faults = 0
    faults: list[Fault] = []
    for number, content in _content(path):
        found, line_format = ([content], None) if isinstance(content, Fault) else _judge(number, content, file_format)
        if not found:
            n_examples += 1
            file_format = file_format or line_format
        n_faults += len(found)
        faults.extend(found[: MAX_FAULTS_KEPT - len(faults)])
    if n_examples == n_faults == 0:
        n_faults, faults = 1, [Fault(1, "", "empty_file", "the file holds no example")]
    return DatasetReport(file_format, n_examples, n_faults, tuple(faults))


def read(path: Path) -> Iterator[tuple[int, Example]]:
    """Each example with its line's number, one at a time.

    Raises:
        FaultyLineError: at the first line that check() reports.

    """
    file_format: DatasetFormat | None = None
    for number, content in _content(path):
        if isinstance(content, Fault):
            raise FaultyLineError(content)
        faults, line_format = _judge(number, content, file_format)
        if faults or line_format is None:
            raise FaultyLineError(faults[0])
        file_format = line_format
        yield number, _SPECS[line_format].model_validate(parse(content))
    if file_format is None:
        raise FaultyLineError(Fault(1, "", "empty_file", "the file holds no example"))


def _content(path: Path) -> Iterator[tuple[int, bytes | Fault]]:
    """Every line that is not blank, or why it cannot be read. Stops early where the rest would tell nothing more."""
    with path.open("rb") as file:
        for number, line in lines(file):
            if number == 1 and line is not None:
                foreign = _foreign(line)
                if foreign:
                    yield 1, foreign
                    return
                if line.startswith(_BYTE_ORDER_MARK):
                    yield 1, Fault(1, "", "byte_order_mark", "the file begins with a byte order mark: save it without")
                    line = line[len(_BYTE_ORDER_MARK) :]  # noqa: PLW2901
            if number > MAX_LINES:
                yield number, Fault(number, "", "too_many_lines", f"a file holds at most {MAX_LINES} lines")
                return
            if line is None:
                message = f"the line is longer than {MAX_LINE_BYTES} bytes; one line must hold one example"
                yield number, Fault(number, "", "line_too_long", message)
            elif not line.isspace():
                yield number, line


def _foreign(first: bytes) -> Fault | None:
    for beginning, kind in _FOREIGN.items():
        if first.removeprefix(_BYTE_ORDER_MARK).lstrip(b" \t").startswith(beginning):
            return Fault(1, "", "not_json_lines", f"this is {kind}; JSON Lines has one JSON object a line")
    if first.strip(_BYTE_ORDER_MARK + b" \t\r\n") == b"{":
        message = "this is one JSON value over several lines; JSON Lines has one JSON object a line"
        return Fault(1, "", "not_json_lines", message)
    return None


def _judge(number: int, content: bytes, expected: DatasetFormat | None) -> tuple[list[Fault], DatasetFormat | None]:
    """The faults of a line and its format. No faults mean that the format's spec takes it."""
    try:
        value = parse(content)
        if _is_plain_chat(value) and expected != "prompt_completion" and not may_hide_surrogates(content):
            return [], "chat"
        see(value)
        line_format = _format_of(value, expected)
    except MalformedLineError as error:
        return [Fault(number, error.field, error.code, error.message)], None
    except RecursionError:
        return [Fault(number, "", "nesting", "nested too deep")], None
    return _explain(number, value, line_format), line_format


def _is_plain_chat(value: Any) -> bool:  # noqa: ANN401
    """Whether a line is an ordinary conversation, which ChatExample takes: the quick yes that most lines get.

    A no means nothing: the spec decides. Types are compared by identity, so that no subclass slips through.
    """
    if type(value) is not dict or len(value) != 1:
        return False
    turns = value.get("messages")
    if type(turns) is not list or not 0 < len(turns) <= MAX_TURNS:
        return False
    has_user = False
    role = None
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:  # noqa: PLR2004
            return False
        role, text = turn.get("role"), turn.get("content")
        if type(text) is not str:
            return False
        if role == "user":
            has_user = True
        elif role != "system" and (role != "assistant" or not text or text.isspace()):
            return False
    return has_user and role == "assistant"


def _format_of(value: object, expected: DatasetFormat | None) -> DatasetFormat:
    if not isinstance(value, dict):
        raise MalformedLineError("not_an_object", "the line is not a JSON object")
    if not value.keys() & {"messages", "prompt", "completion"}:
        message = "the line has neither messages (chat) nor prompt and completion"
        raise MalformedLineError("unknown_format", message)
    found: DatasetFormat = "chat" if "messages" in value else "prompt_completion"
    if expected and found != expected:
        message = f"this line is of format {found}, the good lines before are {expected}; a file holds one format"
        raise MalformedLineError("mixed_formats", message)
    return found


_SPECS: Final[dict[DatasetFormat, type[ChatExample | PromptExample]]] = {
    "chat": ChatExample,
    "prompt_completion": PromptExample,
}


def _explain(number: int, value: Any, line_format: DatasetFormat) -> list[Fault]:  # noqa: ANN401
    """The spec's verdict on a parsed line, in our words."""
    messages = value.get("messages")
    if isinstance(messages, list) and len(messages) > MAX_TURNS:
        # Said before the spec looks at them, so that a line of a million turns cannot make a million faults.
        return [Fault(number, "/messages", *_CODES["too_long"])]
    try:
        _SPECS[line_format].model_validate(value)
    except ValidationError as error:
        return [_fault(number, detail) for detail in error.errors(include_url=False, include_input=True)]
    return []


def _fault(number: int, detail: ErrorDetails) -> Fault:
    field = detail.get("ctx", {}).get("at") or pointer(*detail["loc"])
    code, message = _CODES.get(detail["type"], (detail["type"], detail["msg"]))
    if code == "wrong_role":
        message = f"role '{name(str(detail['input']))}' is not one of system, user, assistant"
    return Fault(number, field, code, message)
