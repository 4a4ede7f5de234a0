"""Where in a JSON Schema the part stands that cannot be held to. Knows no grammar: whoever compiles says what is wrong.

A compiler names a fault and not its place. So the parts of a faulty schema are judged alone, and the innermost that
shows the same fault is its place.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Schema = dict[str, object]
Judge = Callable[[Schema], str | None]  # what is wrong with a schema, or None

DEFINITIONS = ("$defs", "definitions")
NAMED = (*DEFINITIONS, "properties", "patternProperties")  # hold schemas by name
LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")  # hold schemas in a row
SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
MAX_JUDGED = 2000  # parts of one schema, fewer where each brings long definitions: others wait meanwhile
LONG = 1024  # characters
OPTIONS = "x-guidance"  # the compiler's own options, which are not a customer's to set


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and the path to the schema it is wrong with."""

    message: str
    path: tuple[str, ...]


def find_fault(schema: Schema, judge: Judge) -> Fault | None:
    """The first fault of a schema, or None."""
    own = next((fault for part, path in _all(schema, ()) if (fault := _unfit(part, path))), None)
    if own is not None:
        return own
    message = judge(schema)
    return None if message is None else Fault(message, _Search(schema, message, judge).innermost())


def _unfit(schema: Schema, path: tuple[str, ...]) -> Fault | None:
    """What a compiler takes and yet does not hold."""
    if OPTIONS in schema:
        return Fault(f"{OPTIONS} is not part of JSON Schema", (*path, OPTIONS))
    least, required = schema.get("minProperties"), schema.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, int) and least > named:
        # A grammar counts members, and a repeated one counts twice for it, once for who reads the answer.
        return Fault("minProperties may not exceed the number of required names", (*path, "minProperties"))
    return None


class _Search:
    """From the top of a faulty schema to the part that shows its fault, through what it points to."""

    def __init__(self, schema: Schema, message: str, judge: Judge) -> None:
        self._schema, self._message, self._judge = schema, message, judge
        self._definitions = {name: schema[name] for name in DEFINITIONS if name in schema}
        self._left = MAX_JUDGED // (1 + len(json.dumps(self._definitions)) // LONG)
        self._seen: set[tuple[str, ...]] = set()

    def innermost(self) -> tuple[str, ...]:
        """Its path, or as much of it as may be looked for."""
        part, path = self._schema, tuple[str, ...]()
        while (step := self._step(part, path)) is not None:
            part, path = step
            self._seen.add(path)
        return path

    def _step(self, part: Schema, path: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]] | None:
        for inner, under in _parts(part):
            pointed = self._pointed_to(inner)
            is_known = pointed is not None and pointed[1] in self._seen
            if under[0] not in DEFINITIONS and not is_known and self._is_at_fault(inner):
                return inner, (*path, *under)
        pointed = self._pointed_to(part)
        if pointed is not None and pointed[1] not in self._seen and self._is_at_fault(pointed[0]):
            return pointed
        return None

    def _is_at_fault(self, part: Schema) -> bool:
        self._left -= 1
        return self._left >= 0 and self._judge({**self._definitions, **part}) == self._message

    def _pointed_to(self, part: Schema) -> tuple[Schema, tuple[str, ...]] | None:
        """The definition that a part's $ref names."""
        keys = str(part.get("$ref", "")).removeprefix("#/").split("/")
        if len(keys) != 2 or keys[0] not in DEFINITIONS:  # noqa: PLR2004 - where they stand, and a name
            return None
        named = self._schema.get(keys[0])
        found = named.get(keys[1]) if isinstance(named, dict) else None
        return (found, (keys[0], keys[1])) if isinstance(found, dict) else None


def _all(schema: Schema, path: tuple[str, ...]) -> Iterator[tuple[Schema, tuple[str, ...]]]:
    """The schema and every part of it, with its path."""
    yield schema, path
    for part, step in _parts(schema):
        yield from _all(part, (*path, *step))


def _parts(schema: Schema) -> Iterator[tuple[Schema, tuple[str, ...]]]:
    """The schemas directly within a schema."""
    for key in NAMED:
        held = schema.get(key)
        if isinstance(held, Mapping):
            yield from ((part, (key, str(name))) for name, part in held.items() if isinstance(part, dict))
    for key in LISTED:
        listed = schema.get(key)
        if isinstance(listed, list):
            yield from ((part, (key, str(at))) for at, part in enumerate(listed) if isinstance(part, dict))
    for key in SINGLE:
        part = schema.get(key)
        if isinstance(part, dict):
            yield part, (key,)
