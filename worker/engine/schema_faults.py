"""Where in a JSON Schema the part stands that cannot be held to. Knows no grammar: whoever compiles says what is wrong.

A compiler names a fault and not its place. So the parts of a faulty schema are judged alone, and the innermost that
shows the same fault is its place.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Schema = dict[str, object]
Judge = Callable[[Schema], str | None]  # what is wrong with a schema, or None

NAMED = ("$defs", "definitions", "properties", "patternProperties")  # hold schemas by name
LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")  # hold schemas in a row
SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
OPTIONS = "x-guidance"  # the compiler's own options, which are not a customer's to set


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and the path to the schema it is wrong with."""

    message: str
    path: tuple[str, ...]


def find_fault(schema: Schema, judge: Judge) -> Fault | None:
    """The first fault of a schema, or None. Raises nothing, whatever the schema holds."""
    own = next((fault for part, path in _all(schema, ()) if (fault := _unfit(part, path))), None)
    if own is not None:
        return own
    message = judge(schema)
    return None if message is None else Fault(message, _place(schema, message, judge, _definitions(schema)))


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


def _place(schema: Schema, message: str, judge: Judge, definitions: Schema) -> tuple[str, ...]:
    for part, path in _parts(schema):
        if judge({**definitions, **part}) == message:
            return (*path, *_place(part, message, judge, definitions))
    return ()


def _definitions(schema: Schema) -> Schema:
    """What a part may point to."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


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
