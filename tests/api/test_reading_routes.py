"""Embeddings and classifications: what engines are asked to read, and what is made of it."""

import base64
import math
import struct

import pytest
from asking import HELLO, usage_rows
from serving import BASE

MEMBERS = {
    "peft": {"type": "prompt_tuning", "ensemble_size": 3},
    "details": {"members": 3, "peft_type": "PROMPT_TUNING"},
}


def embed(service, **fields):
    return service.http.post("/v1/embeddings", json={"model": BASE, "input": "abc", **fields})


def classify(service, **fields):
    body = {"model": BASE, "messages": HELLO, "labels": ["ab", "c"], **fields}
    return service.http.post("/v1/classify", json={key: value for key, value in body.items() if value is not ...})


def test_a_text_is_embedded_as_numbers_or_as_base64_and_counted(service, engine):
    body = embed(service).json()
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [3.0, float(97 + 98 + 99)]}],
        "model": BASE,
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    packed = embed(service, encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (3.0, 294.0)
    assert usage_rows(service) == [(BASE, 3, 0)] * 2
    assert [spec.read.what for spec in engine.requests] == ["embedding"] * 2


def test_texts_and_ids_are_embedded_in_the_order_asked_however_many(service, engine):
    many = ["x" * n for n in range(1, 101)]
    body = embed(service, input=many).json()
    assert [one["embedding"][0] for one in body["data"]] == [float(n) for n in range(1, 101)]
    assert [one["index"] for one in body["data"]] == list(range(100))
    assert body["usage"]["prompt_tokens"] == sum(range(1, 101))
    assert embed(service, input=[97, 98]).json()["data"][0]["embedding"][0] == 2.0
    assert [one["embedding"][0] for one in embed(service, input=[[97], [98, 99]]).json()["data"]] == [1.0, 2.0]
    name = service.adapter()["fine_tuned_model"]
    assert embed(service, model=name).json()["model"] == name
    assert engine.requests[-1].adapter is not None


def test_what_cannot_be_embedded_is_a_400_that_names_it(service, engine):
    for fields, param in [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 257}, "input"),
        ({"input": [-1]}, "input.0"),
        ({"dimensions": 5}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": ""}, "model"),
    ]:
        answer = embed(service, **fields)
        assert answer.status_code == 400, fields
        assert answer.json()["error"]["param"].startswith(param), (fields, answer.text)
    ensemble = service.adapter(**MEMBERS)["fine_tuned_model"]
    assert embed(service, model=ensemble).json()["error"]["code"] == "ensemble_not_supported"
    assert engine.requests == []
    long = embed(service, input="x" * 600)
    engine.script = []
    assert embed(service, model="gpt-9").status_code == 404
    assert long.status_code == 200  # the fake reads all; a real engine's no is below


def test_an_engine_s_refusal_names_the_field_of_the_client(service, engine):
    error = {"code": "context_length_exceeded", "message": "the prompt has 600 tokens", "param": "prompt"}
    engine.script = [{"refuse": error}]
    assert embed(service).json()["error"]["param"] == "input"
    engine.script = [{"refuse": error}] * 2
    assert classify(service).json()["error"]["param"] == "messages"
    assert usage_rows(service) == []


def test_labels_are_scored_by_their_whole_log_probability_or_by_their_tokens_mean(service, engine):
    body = classify(service).json()
    by_label = {one["label"]: one for one in body["scores"]}
    assert by_label["ab"]["logprob"] == pytest.approx(-(97 + 98) / 256)
    assert by_label["c"]["score"] == by_label["c"]["logprob"] == pytest.approx(-99 / 256)
    assert [one["label"] for one in body["scores"]] == ["ab", "c"]
    assert body["label"] == "c"
    assert by_label["ab"]["tokens"] == 2
    assert math.fsum(one["probability"] for one in body["scores"]) == pytest.approx(1)
    assert body["usage"] == {"prompt_tokens": 11 + 3, "completion_tokens": 0, "total_tokens": 14}
    assert usage_rows(service) == [(BASE, 14, 0)]
    # Both were asked at once: which came in first is nobody's matter.
    assert {(spec.read.answer, spec.messages[0].content) for spec in engine.requests} == {
        ("ab", "hello"),
        ("c", "hello"),
    }
    assert len(engine.requests) == 2
    mean = classify(service, per_token=True).json()
    assert (mean["label"], mean["scores"][0]["score"]) == ("ab", pytest.approx(-(97 + 98) / 512))
    assert mean["scores"][0]["logprob"] == by_label["ab"]["logprob"]


def test_an_ensemble_s_members_are_averaged(service, engine):
    name = service.adapter(**MEMBERS)["fine_tuned_model"]
    body = classify(service, model=name, prompt="q", messages=...).json()
    assert body["label"] == "c"
    assert sorted((spec.read.answer, spec.adapter.member) for spec in engine.requests) == [
        (label, member) for label in ("ab", "c") for member in range(3)
    ]


def test_what_cannot_be_classified_is_a_400_that_names_it(service, engine):
    for fields, param in [
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"labels": [""]}, "labels.0"),
        ({"labels": [str(n) for n in range(65)]}, "labels"),
        ({"prompt": "both"}, "messages"),
        ({"messages": ...}, "messages"),
        ({"per_token": "perhaps"}, "per_token"),
    ]:
        answer = classify(service, **fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), fields
    assert engine.requests == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify", "/v1/compare"])
def test_nobody_reads_without_a_key(service, path):
    answer = service.http.post(path, json={}, headers={"authorization": "Bearer no"})
    assert answer.status_code == 401
