"""Where a row's virtual tokens, anchor words, input and target stand: the template of P-tuning, read from its notation.

Knows no tokeniser and no tensor. Liu et al. 2021, arXiv:2103.10385, section 3: virtual tokens may stand anywhere.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_VIRTUAL_TOKENS = 512
NOTATION = "{v:3} is three virtual tokens, {input} the prompt, {target} the answer, {{ and }} braces, all else words"
_PART = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
_VIRTUAL = re.compile(r"v:([0-9]{1,4})")


@dataclass(frozen=True)
class Virtual:
    """So many virtual tokens, numbered on from those before them."""

    count: int


Segment = Virtual | str  # a str is anchor text


@dataclass(frozen=True)
class Layout:
    """A template as one tokeniser writes it: the ids about a row's input. A negative id is a virtual token."""

    before: tuple[int, ...]  # in front of the input
    after: tuple[int, ...]  # between the input and the target

    def around(self, ids: Sequence[int]) -> list[int]:
        """The whole of a row up to its target."""
        return [*self.before, *ids, *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Template:
    """What stands before the input and what stands between the input and the target."""

    before: tuple[Segment, ...]
    after: tuple[Segment, ...]

    @property
    def num_virtual_tokens(self) -> int:
        """P: all virtual tokens are one sequence, whatever stands between them."""
        return sum(s.count for s in (*self.before, *self.after) if isinstance(s, Virtual))

    @property
    def is_in_front(self) -> bool:
        """Whether it is virtual tokens first and the row after them: what stock PEFT can say too."""
        return not self.after and all(isinstance(s, Virtual) for s in self.before)

    def layout(self, encode: Callable[[str], Sequence[int]]) -> Layout:
        """encode: text to ids, without special tokens. Each anchor is encoded by itself."""
        count, sides = 0, []
        for side in (self.before, self.after):
            ids: list[int] = []
            for segment in side:
                if isinstance(segment, str):
                    ids += encode(segment)
                    continue
                ids += range(-1 - count, -1 - count - segment.count, -1)
                count += segment.count
            sides.append(tuple(ids))
        return Layout(*sides)


def parse(text: str) -> Template:
    """Reads the notation.

    Raises:
        ValueError: what is wrong, where, and what the notation is.

    """
    sides: dict[str, list[Segment]] = {"before": [], "after": []}
    stage = "before"
    for found in _PART.finditer(text):
        part, at = found.group(), found.start() + 1
        if stage == "end" and part.strip():
            raise _refused(f"character {at}: nothing may stand behind {{target}}: rows are read from left to right")
        match part:
            case "{input}" if stage == "before":
                stage = "after"
            case "{target}" if stage == "after":
                stage = "end"
            case "{input}" | "{target}":
                raise _refused(f"character {at}: {part} is expected once, {{input}} first and {{target}} last")
            case _ if stage != "end":
                _append(sides[stage], part, at)
    if stage != "end":
        raise _refused(f"it has no {'{input}' if stage == 'before' else '{target}'}")
    template = Template(tuple(sides["before"]), tuple(sides["after"]))
    if not 1 <= template.num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
        raise _refused(f"it has {template.num_virtual_tokens} virtual tokens; 1 to {MAX_VIRTUAL_TOKENS} are expected")
    return template


def in_front(count: int) -> Template:
    """Prompt tuning's: so many virtual tokens, then the row."""
    return Template((Virtual(count),), ())


def _append(side: list[Segment], part: str, at: int) -> None:
    if part[0] in "{}" and part not in ("{{", "}}"):
        virtual = _VIRTUAL.fullmatch(part[1:-1])
        if virtual is None or int(virtual[1]) == 0:
            raise _refused(f"character {at}: {part!r} is not understood")
        side.append(Virtual(int(virtual[1])))
        return
    words = {"{{": "{", "}}": "}"}.get(part, part)
    if side and isinstance(side[-1], str):
        side[-1] += words
    else:
        side.append(words)


def _refused(reason: str) -> ValueError:
    return ValueError(f"template: {reason}; {NOTATION}")
