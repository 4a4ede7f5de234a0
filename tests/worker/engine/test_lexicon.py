"""Schemas: which can be held to, where one that cannot is at fault, and what a random draw under the mask writes."""

import json
import random

import jsonschema
import pytest

from tests.worker.engine.conftest import STOP_ID, make_tokenizer
from worker.engine.lexicon import Lexicon, SchemaError

JSON_CHARACTERS = '{}[]"\\+'


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon(make_tokenizer(JSON_CHARACTERS), vocabulary=99, stop_ids={STOP_ID})


def written(lexicon, schema, seed, *, is_masked=True):
    """What a draw without any model writes: every token that is allowed is as likely."""
    guide, said, chance = lexicon.guide(json.dumps(schema)), b"", random.Random(seed)
    for _ in range(2000):
        allowed = guide.allowed().nonzero()[0].tolist() if is_masked else list(range(STOP_ID, 85))
        token = chance.choice(allowed)
        if token == STOP_ID:
            return said.decode()
        said += lexicon.bytes_of(token)
        if is_masked:
            guide.take(token)
    raise AssertionError(f"no end after {said[:60]!r}")


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["left"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = [
    PERSON,
    TREE,
    {"enum": ["yes", "no"]},
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]{3}$"},
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"x": {"const": 7}}, "required": ["x"]}]},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_whatever_is_drawn_under_the_mask_validates(lexicon, schema):
    answers = [written(lexicon, schema, seed) for seed in range(25)]
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)
    # Negative control: without the mask the same draws write no such JSON.
    for seed in range(5):
        with pytest.raises((ValueError, jsonschema.ValidationError)):
            jsonschema.validate(json.loads(written(lexicon, schema, seed, is_masked=False)), schema)


NOT = {"not": {"type": "string"}}
FAULTY = [
    ({"type": "strin"}, ()),
    ({"type": "object", "properties": {"a": {"type": "strin"}}}, ("properties", "a")),
    ({"type": "object", "properties": {"a": {"type": "array", "items": NOT}}}, ("properties", "a", "items")),
    ({"anyOf": [{"type": "null"}, {"type": "string", "format": "nope"}]}, ("anyOf", "1")),
    ({"$defs": {"x": NOT}, "type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}}, ("$defs", "x")),
    ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, ("properties", "a")),
    ({"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/"}}}, ("properties", "a")),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, ("properties", "a")),
    ({"type": "array", "items": {"x-guidance": {}}}, ("items", "x-guidance")),
    ({"type": "object", "minProperties": 2}, ("minProperties",)),
    ({"type": "object", "properties": 5}, ()),
    ({"$defs": {"x": {"items": NOT}}, "properties": {"b": {}, "a": {"$ref": "#/$defs/x"}}}, ("$defs", "x", "items")),
    ({"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, NOT]}}, "$ref": "#/$defs/x"}, ("$defs", "x", "anyOf", "1")),
    ({"enum": []}, ()),
    ({"$ref": "#"}, ()),
    ({"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}] * 2}}}, ("properties", "a")),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 2}},
            "required": ["a"],
        },
        (),
    ),
]


@pytest.mark.parametrize(("schema", "path"), FAULTY)
def test_a_schema_that_cannot_be_held_to_is_refused_at_its_place(lexicon, schema, path):
    with pytest.raises(SchemaError) as found:
        lexicon.guide(json.dumps(schema))
    assert found.value.path == path
    assert 0 < len(str(found.value)) <= 200


@pytest.mark.parametrize("text", ["", "{", "[]", "true", "[" * 50_000, '{"items":' * 900 + "{}" + "}" * 900])
def test_what_is_no_schema_at_all_is_refused(lexicon, text):
    with pytest.raises(SchemaError):
        lexicon.guide(text)


def test_a_property_called_like_a_keyword_is_no_keyword(lexicon):
    named = {"type": "object", "properties": {"minProperties": {"type": "null"}}, "required": ["minProperties"]}
    assert "minProperties" in json.loads(written(lexicon, named | {"additionalProperties": False}, 1))


def test_a_draw_that_the_schema_forbids_is_not_taken(lexicon):
    guide = lexicon.guide(json.dumps({"enum": ["yes"]}))
    forbidden = int((~guide.allowed()).nonzero()[0][10])
    with pytest.raises(SchemaError):
        guide.take(forbidden)


def test_the_bytes_of_a_token_are_what_it_writes(lexicon):
    tokenizer = make_tokenizer(JSON_CHARACTERS)
    for token in tokenizer.encode("Hi there, {you}!\n"):
        assert lexicon.bytes_of(token).decode() == tokenizer.decode([token])
