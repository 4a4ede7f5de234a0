"""Bodies that strangers wrote: malformed, endless or absurd, they are refused and nothing fails."""

import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as st
from serving import BASE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"3",
        b"{",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"model": NaN}',
        b'{"temperature": 1e999, "model": "m", "messages": []}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"seed": 99999999999999999999}',
        b'{"model": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"model": "\xff"}',
        b'\xef\xbb\xbf{"model": "m"}',
        b'{"model": "a", "model": "b"}',
        b'{"model": "a\\u0000b"}',
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        b'{"messages": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}',
    ],
    ids=range(21),
)
def test_a_body_that_is_no_json_of_ours_is_a_400(service, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"):
        answer = service.http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in {400, 404}, (path, answer.text)
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


def test_a_body_of_another_type_is_a_400(service):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense", ""):
        answer = service.http.post("/v1/completions", content=b'{"model": "m"}', headers={"content-type": kind})
        assert answer.status_code == 400


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


FIELDS = {
    "/v1/chat/completions": [
        "model",
        "messages",
        "n",
        "stop",
        "stream",
        "stream_options",
        "tools",
        "logit_bias",
        "seed",
    ],
    "/v1/completions": ["model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "echo", "suffix"],
    "/v1/fine_tuning/jobs": ["model", "training_file", "method", "peft", "training", "metadata", "hyperparameters"],
}


@pytest.mark.parametrize("path", FIELDS)
def test_no_body_makes_the_front_end_fail(service, path):
    @trying(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, min_size=1), st.booleans())
    def probe(fields, is_almost_right):
        if is_almost_right:
            fields = {"model": BASE, "messages": [{"role": "user", "content": "x"}], "training_file": "f"} | fields
        content = json.dumps(fields).encode()
        answer = service.http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code < 500 or answer.json()["error"]["code"] == "engine_unavailable", (fields, answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}

    probe()


def test_a_body_over_the_limit_stops_at_the_limit(service):
    taken = 0

    def endless():
        nonlocal taken
        yield b'{"model": "'
        while taken < 64 << 20:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    answer = service.http.post("/v1/completions", content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert taken < 32 << 20
