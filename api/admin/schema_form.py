"""A pydantic spec as the fields of a form, read from its JSON Schema: whoever adds a field there has it here."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Kind = Literal["choice", "check", "number", "text", "words", "list", "json"]
LONG = 1000  # characters that a text may have, from which on it gets several lines


@dataclass(frozen=True)
class Field:
    """One input. may_be_auto: whether "auto" is a value of it, which an empty input then means.

    words: what a number may be beside a number and "auto".
    """

    name: str
    kind: Kind
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    is_whole: bool = False
    may_be_auto: bool = False
    words: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The default as an input holds it."""
        if self.default is None or self.kind in {"list", "json"}:
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else f"{self.default}"

    @property
    def is_broad(self) -> bool:
        """Whether it takes a row of its own."""
        return self.kind in {"words", "list", "json"}


def fields_of(spec: type[BaseModel], *, without: Collection[str] = ()) -> list[Field]:
    """Every field that may be chosen, in the spec's order but for the base's precision, which all share, at the end."""
    schema = spec.model_json_schema()
    known = schema.get("$defs", {})
    found = [
        _field(name, rules, known)
        for name, rules in schema["properties"].items()
        if name not in without and "const" not in rules
    ]
    return sorted(found, key=lambda field: field.name == "base_precision")


def _field(name: str, rules: Mapping[str, Any], known: Mapping[str, Any]) -> Field:
    options = [_followed(option, known) for option in rules.get("anyOf", [rules])]
    default = rules.get("default")
    said = rules.get("description", "")
    has_auto = any(option.get("const") == "auto" or option.get("enum") == ["auto"] for option in options)
    plain = [option for option in options if option.get("type") != "null" and "const" not in option]
    rule = plain[0] if len(plain) == 1 else {}
    if "enum" in rule or (has_auto and rule.get("type") == "boolean"):
        choices = (*(["auto"] if has_auto else []), *rule.get("enum", ("true", "false")))
        return Field(name, "choice", default, said, choices=tuple(choices), may_be_auto=has_auto)
    match rule.get("type"):
        case "boolean":
            return Field(name, "check", default, said)
        case "number" | "integer":
            low, high = (rule.get(end, rule.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
            is_whole = rule["type"] == "integer"
            bounds = {"minimum": low, "maximum": high, "is_whole": is_whole, "may_be_auto": has_auto}
            words = tuple(option["const"] for option in options if option.get("const") not in (None, "auto"))
            return Field(name, "number", default, said, words=words, **bounds)
        case "string":
            return Field(name, "words" if rule.get("maxLength", 0) > LONG else "text", default, said)
        case "object":
            return Field(name, "json", default, said)
    return Field(name, "list", default, said)


def _followed(rules: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    """A rule that stands elsewhere, where it stands."""
    reference = rules.get("$ref")
    return known[reference.rpartition("/")[2]] if reference else rules
