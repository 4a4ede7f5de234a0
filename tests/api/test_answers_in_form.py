"""JSON asked for, likelihoods asked for, prompts echoed: what reaches the engine, and what comes back."""

import json

import pytest
from asking import ask, events_of, usage_rows
from fake_engine import WORDS, words_of
from serving import BASE

from api.logprobs import Offsets
from core.specs.generation import Likelihood

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def formatted(schema=SCHEMA):
    return {"type": "json_schema", "json_schema": {"name": "found", "strict": True, "schema": schema}}


def test_a_schema_reaches_every_row_of_the_engine(service, engine):
    assert ask(service, response_format=formatted(), n=2).status_code == 200
    assert [json.loads(spec.json_schema) for spec in engine.requests] == [SCHEMA] * 2
    ask(service, response_format={"type": "json_object"})
    assert json.loads(engine.requests[-1].json_schema) == {"type": "object"}
    ask(service, "/v1/completions", messages=..., prompt="abc", response_format=formatted())
    assert json.loads(engine.requests[-1].json_schema) == SCHEMA
    ask(service, response_format={"type": "text"}, stop="}")
    assert engine.requests[-1].json_schema is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_the_engine_cannot_hold_to_is_a_400_that_names_the_path(service, engine, stream):
    path = "response_format.json_schema.schema.properties.a"
    error = {"code": "invalid_json_schema", "message": "the schema cannot be held to: Invalid type: int", "param": path}
    engine.script = [{"status": 400, "body": {"error": error}}]
    answer = ask(service, response_format=formatted({"properties": {"a": {"type": "int"}}}), stream=stream)
    assert answer.status_code == 400
    found = answer.json()["error"]
    assert (found["param"], found["code"], found["type"]) == (path, "invalid_json_schema", "invalid_request_error")
    assert usage_rows(service) == []


def test_penalties_and_biases_reach_the_engine(service, engine):
    ask(
        service,
        min_p=0.1,
        presence_penalty=-1,
        frequency_penalty=2,
        repetition_penalty=1.3,
        logit_bias={"50": -100, "7": 3.5},
    )
    sampling = engine.requests[0].sampling
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -1, 2)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.3, ((50, -100), (7, 3.5)))


def test_a_chat_s_likelihoods_are_in_openais_shape_whole_and_streamed(service, engine):
    choice = ask(service, logprobs=True, top_logprobs=2).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert engine.requests[0].top_logprobs == 2
    assert "".join(one["token"] for one in content) == choice["message"]["content"] == words_of(engine.requests[0], 6)
    assert all(bytes(one["bytes"]).decode() == one["token"] for one in content)
    assert [one["token"] for one in content[0]["top_logprobs"]] == [f" {WORDS[0]}", f" {WORDS[1]}"]
    assert content[0]["top_logprobs"][1]["logprob"] == -1.5
    chunks = events_of(ask(service, logprobs=True, top_logprobs=2, stream=True).text)[:-1]
    streamed = [one for c in chunks for one in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == content
    # Negative control: nobody who does not ask is told.
    assert ask(service).json()["choices"][0]["logprobs"] is None
    assert engine.requests[-1].top_logprobs is None


def completion(service, **fields):
    return ask(service, "/v1/completions", messages=..., **{"prompt": "abc", "max_tokens": 3} | fields)


@pytest.mark.usefixtures("engine")
def test_a_completion_s_likelihoods_are_in_openais_older_shape(service):
    choice = completion(service, logprobs=2).json()["choices"][0]
    said = choice["logprobs"]
    assert "".join(said["tokens"]) == choice["text"]
    assert all(choice["text"][at:].startswith(t) for at, t in zip(said["text_offset"], said["tokens"], strict=True))
    assert said["text_offset"][0] == 0
    assert said["top_logprobs"][0] == {f" {WORDS[0]}": -0.5, f" {WORDS[1]}": -1.5}
    assert len(said["token_logprobs"]) == 3
    chunks = events_of(completion(service, logprobs=2, stream=True).text)[:-1]
    streamed = [c["choices"][0]["logprobs"] for c in chunks]
    for field, whole in said.items():
        assert [one for piece in streamed for one in piece[field]] == whole


def test_an_echo_says_the_prompt_first_and_counts_it_once(service, engine):
    plain = completion(service).json()
    echoed = completion(service, echo=True).json()
    assert echoed["choices"][0]["text"] == "abc" + plain["choices"][0]["text"]
    assert echoed["usage"] == plain["usage"]
    assert all(spec.read is None for spec in engine.requests)
    told = completion(service, echo=True, logprobs=1).json()
    said = told["choices"][0]["logprobs"]
    assert said["tokens"][:3] == ["a", "b", "c"]
    assert said["token_logprobs"][:3] == [None, -98 / 256, -99 / 256]
    assert said["top_logprobs"][0] is None
    assert said["text_offset"][:4] == [0, 1, 2, 3]
    assert told["usage"] == plain["usage"]
    chunks = events_of(completion(service, echo=True, logprobs=1, stream=True).text)[:-1]
    assert "".join(c["choices"][0]["text"] for c in chunks) == told["choices"][0]["text"]
    assert [t for c in chunks for t in c["choices"][0]["logprobs"]["tokens"]] == said["tokens"]
    assert [t for c in chunks for t in c["choices"][0]["logprobs"]["text_offset"]] == said["text_offset"]
    assert usage_rows(service) == [(BASE, 3, 3)] * 4


@pytest.mark.usefixtures("engine")
def test_prompts_of_ids_and_several_prompts_are_echoed_each_before_its_own_answers(service):
    assert completion(service, prompt=[97, 98], echo=True).json()["choices"][0]["text"].startswith("ab ")
    several = completion(service, prompt=["abc", "de"], n=2, echo=True, logprobs=0).json()["choices"]
    assert [choice["text"].split(" ")[0] for choice in several] == ["abc", "abc", "de", "de"]
    assert [choice["logprobs"]["tokens"][0] for choice in several] == ["a", "a", "d", "d"]


def test_a_prompt_may_be_read_without_any_answer(service, engine):
    for stream in (False, True):
        answer = completion(service, max_tokens=0, echo=True, logprobs=1, stream=stream)
        choice = (events_of(answer.text)[0] if stream else answer.json())["choices"][0]
        assert (choice["text"], choice["logprobs"]["tokens"]) == ("abc", ["a", "b", "c"])
    assert [spec.read is not None for spec in engine.requests] == [True] * 2
    assert usage_rows(service) == [(BASE, 3, 0)] * 2
    assert completion(service, max_tokens=0).json()["error"]["param"] == "max_tokens"


def test_half_a_character_has_its_bytes_for_a_name_and_offsets_count_characters():
    pieces = [b"a", "é".encode()[:1], "é".encode()[1:], b"b"]
    said = Offsets().of_completion(Likelihood(id=i, bytes=tuple(piece), logprob=-1.0) for i, piece in enumerate(pieces))
    assert said["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]
    assert said["text_offset"] == [0, 1, 1, 2]
