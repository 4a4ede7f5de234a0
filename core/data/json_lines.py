"""Bytes to lines to JSON values, for files that strangers wrote: total, in flat memory. Knows no dataset format."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_LINE_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_INTEGER = 1 << 53  # beyond it, JSON readers disagree about the number

_SKIP_BYTES = 1 << 20
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAME_CHARACTERS = 64


class MalformedLineError(ValueError):
    """A line that is no JSON value of ours. field is a JSON pointer, "" for the whole line."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.field = code, message, field


class Repeated(dict[str, Any]):
    """An object in which a key stood twice."""

    key: str


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Each line's number, from 1, and its bytes, None where it exceeds MAX_LINE_BYTES. Holds one line at a time."""
    number = 0
    while content := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        if len(content.rstrip(b"\r\n")) <= MAX_LINE_BYTES:
            yield number, content
            continue
        while not content.endswith(b"\n") and (content := file.readline(_SKIP_BYTES)):
            pass
        yield number, None


def parse(content: bytes) -> object:
    """The JSON value of one line. An object with a repeated key is a Repeated; see() tells of it.

    Raises:
        MalformedLineError: not UTF-8, not JSON, or too deep to be read.

    """
    try:
        return _DECODER.decode(content.decode())
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line (0x{content[error.start]:02x}) is not UTF-8"
        raise MalformedLineError("invalid_utf8", message) from None
    except json.JSONDecodeError as error:
        raise MalformedLineError(
            "invalid_json", f"not a JSON value: {error.msg}, at character {error.pos + 1}"
        ) from None
    except RecursionError:
        raise _too_deep("") from None


def may_hide_surrogates(content: bytes) -> bool:
    """Whether a line spells a surrogate by an escape, halves of a proper pair included. Quick."""
    return b"\\" in content and _ESCAPED_SURROGATE.search(content) is not None


def see(value: object, field: str = "", depth: int = 0) -> None:
    """Looks through a parsed value for what JSON allows and we do not.

    Raises:
        MalformedLineError: a number that is not finite or too large, a lone surrogate, a repeated key, or nesting
            deeper than MAX_DEPTH: the first in the order of the line.

    """
    if depth > MAX_DEPTH:
        raise _too_deep(field)
    match value:
        case str():
            _see_text(value, field)
        case float() if not math.isfinite(value):
            raise MalformedLineError("number", "a number must be finite: NaN, Infinity and overflow are refused", field)
        case int() if abs(value) > MAX_INTEGER:
            raise MalformedLineError("number", "a whole number must lie between -2^53 and 2^53", field)
        case dict():
            _see_object(value, field, depth)
        case list():
            for index, item in enumerate(value):
                see(item, f"{field}/{index}", depth + 1)


def name(text: str) -> str:
    """A stranger's word made fit for a message: printable, short, valid UTF-8, on one line."""
    short = text if len(text) <= _NAME_CHARACTERS else text[:_NAME_CHARACTERS] + "…"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in short)


def pointer(*steps: str | int) -> str:
    """A JSON pointer (RFC 6901) of these steps."""
    return "".join("/" + name(str(step)).replace("~", "~0").replace("/", "~1") for step in steps)


def _see_object(value: dict[str, Any], field: str, depth: int) -> None:
    if isinstance(value, Repeated):
        key = pointer(value.key)
        raise MalformedLineError("duplicate_key", f"key '{name(value.key)}' stands twice in one object", field + key)
    for key, item in value.items():
        _see_text(key, field)
        see(item, field + pointer(key), depth + 1)


def _see_text(text: str, field: str) -> None:
    if _SURROGATE.search(text):
        raise MalformedLineError(
            "lone_surrogate", "the text holds half of a surrogate pair, which is no character", field
        )


def _too_deep(field: str) -> MalformedLineError:
    return MalformedLineError("nesting", f"nested deeper than {MAX_DEPTH}", field)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    seen: set[str] = set()
    repeated = Repeated(value)
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _integer(digits: str) -> int:
    # Python refuses to read more than 4300 digits; any such number is far beyond the bound, and see() says so.
    return int(digits) if len(digits) <= 20 else MAX_INTEGER + 1  # noqa: PLR2004


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
