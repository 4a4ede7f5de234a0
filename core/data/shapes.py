"""Records to examples: which format a record is of, by its keys, and what is wrong with it. Knows no file."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.data.faults import Fault
from core.data.json_lines import MalformedLineError, may_hide_surrogates, name, parse, pointer, see
from core.specs.dataset import (
    MAX_TURNS,
    AnyExample,
    ChatExample,
    ClassificationExample,
    DatasetFormat,
    InstructionExample,
    PreferenceExample,
    PromptExample,
    ShareGPTExample,
    TextExample,
)

SPECS: Final[dict[DatasetFormat, type[AnyExample]]] = {
    "chat": ChatExample,
    "prompt_completion": PromptExample,
    "instruction": InstructionExample,
    "sharegpt": ShareGPTExample,
    "preference": PreferenceExample,
    "classification": ClassificationExample,
    "text": TextExample,
}
COLUMNS: Final = frozenset(
    field.alias or key for spec in SPECS.values() for key, field in spec.model_fields.items()
) - {"id", "system"}
NESTED: Final = frozenset({"messages", "conversations", "input", "preferred_output", "non_preferred_output"})

# The first of these keys that a record has says what it is.
_TELLING: Final[Mapping[str, DatasetFormat]] = {
    "messages": "chat",
    "conversations": "sharegpt",
    "preferred_output": "preference",
    "non_preferred_output": "preference",
    "prompt": "prompt_completion",
    "completion": "prompt_completion",
    "instruction": "instruction",
    "output": "instruction",
    "label": "classification",
    "text": "text",
}
_KNOWN: Final = (
    "messages (chat), prompt and completion, instruction and output, conversations (ShareGPT), "
    "input with preferred_output and non_preferred_output, text and label, or text"
)
_LISTS: Final = ("messages", "conversations", "preferred_output", "non_preferred_output")
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
    "bool_type": ("wrong_type", "must be true or false"),
    "bool_parsing": ("wrong_type", "must be true or false"),
}


def judge(
    number: int, content: bytes | dict[str, Any], expected: DatasetFormat | None
) -> tuple[list[Fault], DatasetFormat | None, Any]:
    """A record's faults, its format and its value. No faults mean that the format's spec takes the value."""
    try:
        value = parse(content) if isinstance(content, bytes) else content
        if expected in (None, "chat") and is_plain_chat(value) and not _hides_surrogates(content):
            return [], "chat", value
        see(value)
        line_format = _format_of(value, expected)
    except MalformedLineError as error:
        return [Fault(number, error.field, error.code, error.message)], None, None
    except RecursionError:
        return [Fault(number, "", "nesting", "nested too deep")], None, None
    return _explain(number, value, line_format), line_format, value


def is_plain_chat(value: Any) -> bool:  # noqa: ANN401
    """Whether a record is an ordinary conversation, which ChatExample takes: the quick yes that most get.

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


def _hides_surrogates(content: bytes | dict[str, Any]) -> bool:
    return not isinstance(content, bytes) or may_hide_surrogates(content)


def _format_of(value: object, expected: DatasetFormat | None) -> DatasetFormat:
    if not isinstance(value, dict):
        raise MalformedLineError("not_an_object", "the line is not a JSON object")
    found = next((line_format for key, line_format in _TELLING.items() if key in value), None)
    if found is None:
        keys = ", ".join(name(key) for key in list(value)[:8]) or "none"
        raise MalformedLineError("unknown_format", f"no known format: expected {_KNOWN}; found the fields {keys}")
    if expected and found != expected:
        message = f"this line is of format {found}, the good lines before are {expected}; a file holds one format"
        raise MalformedLineError("mixed_formats", message)
    return found


def _explain(number: int, value: Any, line_format: DatasetFormat) -> list[Fault]:  # noqa: ANN401
    """The spec's verdict on a parsed record, in our words."""
    for field in _LISTS:
        turns = value.get(field)
        if isinstance(turns, list) and len(turns) > MAX_TURNS:
            # Said before the spec looks at them, so that a line of a million turns cannot make a million faults.
            return [Fault(number, f"/{field}", *_CODES["too_long"])]
    try:
        SPECS[line_format].model_validate(value)
    except ValidationError as error:
        return [_fault(number, detail) for detail in error.errors(include_url=False, include_input=True)]
    return []


def _fault(number: int, detail: ErrorDetails) -> Fault:
    field = detail.get("ctx", {}).get("at") or pointer(*detail["loc"])
    code, message = _CODES.get(detail["type"], (detail["type"], detail["msg"]))
    if code == "wrong_role":
        expected = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        message = f"role '{name(str(detail['input']))}' is not one of {expected}"
    if field == "/input" and detail["type"] == "model_type":
        message = "must be an object with messages"
    if field.endswith("/tools") and code == "too_many_turns":
        code, message = "unknown_field", "tools are not known here: the list must be empty"
    return Fault(number, field, code, message)
