"""What is odd about a file that can be trained on: repeated, blank and disordered examples. Knows no tokeniser.

What a tokeniser and a chat template make of it, core/data/preview.py finds.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from core.data.faults import Fault, Faults
from core.specs.dataset import DatasetFormat

REMEMBERED = 200_000  # different examples, about 30 MB; later ones are compared with these alone
_CANONICAL = json.JSONEncoder(sort_keys=True, check_circular=False, default=repr)
_USERS = ("user", "human")
_ASSISTANTS = ("assistant", "gpt")


class Doctor:
    """Looks at one good example after another."""

    def __init__(self) -> None:
        self.warnings = Faults()
        self._first: dict[bytes, int] = {}  # digest of an example: the line where it stood first

    def look(self, line: int, value: dict[str, Any], line_format: DatasetFormat) -> None:
        """One example of a line, as it was written."""
        self.warnings.add(*self._repeated(line, value), *_oddities(line, value, line_format))

    def _repeated(self, line: int, value: dict[str, Any]) -> Iterator[Fault]:
        written = _CANONICAL.encode(value).encode()
        digest = hashlib.blake2b(written, digest_size=8).digest()
        first = self._first.get(digest)
        if first is not None:
            yield Fault(line, "", "duplicate", f"the example is the same as that of line {first}")
        elif len(self._first) < REMEMBERED:
            self._first[digest] = line


def _oddities(line: int, value: dict[str, Any], line_format: DatasetFormat) -> Iterator[Fault]:
    match line_format:
        case "chat":
            yield from _of_turns(line, value["messages"], "/messages", "role", "content")
        case "sharegpt":
            yield from _of_turns(line, value["conversations"], "/conversations", "from", "value")
        case "preference":
            yield from _of_turns(line, value["input"]["messages"], "/input/messages", "role", "content")
        case "prompt_completion":
            for field in ("prompt", "completion"):
                if value[field].isspace():
                    yield Fault(line, f"/{field}", "blank_text", f"the {field} is blank")
        case "instruction" | "classification" | "text":
            field = "instruction" if line_format == "instruction" else "text"
            if value[field].isspace():
                yield Fault(line, f"/{field}", "blank_text", f"the {field} is blank")


def _of_turns(line: int, turns: list[Any], where: str, role: str, content: str) -> Iterator[Fault]:
    """Empty turns, and the first that is out of order: system first, then user and assistant in turn."""
    for place, turn in enumerate(turns):
        text = turn[content]
        if not text or text.isspace():
            yield Fault(line, f"{where}/{place}/{content}", "blank_text", f"the {turn[role]}'s turn is blank")
    message = "user and assistant do not speak in turn from here on, or the system does not speak first"
    wrong = (place for place, is_wrong in enumerate(_order(turns, role)) if is_wrong)
    yield from (Fault(line, f"{where}/{place}/{role}", "role_order", message) for place in islice(wrong, 1))


def _order(turns: list[Any], role: str) -> Iterator[bool]:
    """Of each turn, whether it may not stand behind the one before it."""
    yield turns[0][role] in _ASSISTANTS
    for before, now in ((a[role], b[role]) for a, b in pairwise(turns)):
        if now == "system":
            yield True
        elif now in _USERS:
            yield before in _USERS
        else:
            yield before not in _USERS
