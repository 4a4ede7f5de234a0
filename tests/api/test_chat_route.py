import json
import time

import pytest
from asking import HELLO, ask, events_of, usage_rows
from fake_engine import words_of
from serving import BASE, CHAT_LINE


def test_a_chat_is_answered_in_openais_shape_and_metered_once(service, engine):
    answer = ask(service)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert abs(body.pop("created") - time.time()) < 5
    prompt = len("<user>hello")
    assert body == {
        "model": BASE,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": words_of(engine.requests[0], 6),
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": 6, "total_tokens": prompt + 6},
        "service_tier": "default",
        "system_fingerprint": None,
    }
    assert usage_rows(service) == [(BASE, prompt, 6)]


@pytest.mark.usefixtures("engine")
def test_a_stream_says_the_same_in_chunks(service):
    whole = ask(service).json()["choices"][0]["message"]["content"]
    answer = ask(service, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events_of(answer.text)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1
    assert len(usage_rows(service)) == 2


@pytest.mark.usefixtures("engine")
def test_a_stream_without_include_usage_has_no_usage(service):
    chunks = events_of(ask(service, stream=True).text)
    assert chunks[-1] == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks[:-1])


def test_several_answers_are_drawn_with_seeds_of_their_own(service, engine):
    answer = ask(service, n=3).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    by_index = sorted(engine.requests, key=lambda spec: spec.request_id)
    assert [spec.sampling.seed for spec in by_index] == [5, 6, 7]
    assert texts == [words_of(spec, 6) for spec in by_index]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == len("<user>hello")
    assert answer["usage"]["completion_tokens"] == 18
    streamed = events_of(ask(service, n=3, stream=True).text)[:-1]
    for index in range(3):
        own = [chunk["choices"][0] for chunk in streamed if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in own) == texts[index]


def test_fields_reach_the_engine_as_they_are_meant(service, engine):
    ask(
        service,
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}],
                "name": "ann",
            },
        ],
        max_completion_tokens=3,
        temperature=0,
        top_p=0.5,
        top_k=7,
        stop="END",
        user="someone",
        store=False,
        tools=[],
        logit_bias=None,
        response_format={"type": "text"},
    )
    spec = engine.requests[0]
    assert [(message.role, message.content) for message in spec.messages] == [("system", "be brief"), ("user", "hello")]
    assert spec.sampling.model_dump() == {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 7,
        "seed": 5,
        "max_tokens": 3,
        "stop": ("END",),
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": (),
    }
    assert (spec.json_schema, spec.top_logprobs, spec.read) == (None, None, None)
    ask(service, seed=..., max_tokens=..., stop=["a", "b"])
    default = engine.requests[1].sampling
    assert (default.temperature, default.top_p, default.max_tokens, default.stop) == (1.0, 1.0, 256, ("a", "b"))


BAD_FIELDS = [
    ({"n": 5}, "n"),
    ({"n": 10**6}, "n"),
    ({"n": 0}, "n"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 4097}, "max_completion_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": 1001}, "top_k"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 5}, "stop"),
    ({"stop": ["y" * 65]}, "stop.0"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"one": 1}}, "logit_bias.one"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}}},
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "y" * 65536}}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": "x"}, "presence_penalty"),
    ({"messages": []}, "messages"),
    ({"messages": ...}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": HELLO * 257}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"model": ...}, "model"),
    ({"model": ""}, "model"),
    ({"stream": "perhaps"}, "stream"),
    ({"stream_options": {"x": 1}}, "stream_options.x"),
]


def test_a_bad_field_is_a_400_that_names_it_and_no_engine_hears_of_it(service, engine):
    for fields, param in BAD_FIELDS:
        answer = ask(service, **fields)
        assert answer.status_code == 400, (fields, answer.text)
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param), fields
        assert set(error) >= {"message", "type", "param", "code"}
    assert engine.requests == []


@pytest.mark.usefixtures("engine")
def test_what_was_said_is_never_said_back(service):
    secret = "canary-5d1f"
    for fields in (
        {"messages": [{"role": "user", "content": {"x": secret}}]},
        {"messages": [{"role": "user", "content": secret, "tool_calls": secret}]},
        {"messages": secret},
        {"temperature": secret},
        {"stop": [[secret]]},
    ):
        answer = ask(service, **fields)
        assert answer.status_code == 400
        assert secret not in answer.text


def test_an_unknown_model_is_a_404(service, engine):
    for name in ("gpt-9", "ft:x:y:z:1", "../../etc/passwd", "http://169.254.169.254/", "a\0b", "hf/evil"):
        answer = ask(service, model=name)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "model_not_found"
    assert engine.requests == []
    assert ask(service, model="x" * 10_000).status_code == 400


def test_adapters_are_asked_by_name_id_and_checkpoint(service, engine):
    name = service.adapter()["fine_tuned_model"]
    row = service.http.get("/v1/adapters").json()["data"][0]
    checkpoint = f"{name}:ckpt-step-1"
    answers = [ask(service, model=model) for model in (name, row["id"], checkpoint)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["model"] for answer in answers] == [name, name, checkpoint]
    assert [spec.base_model for spec in engine.requests] == [BASE] * 3
    assert [spec.adapter.sha256 for spec in engine.requests] == [row["sha256"]] * 3
    assert engine.requests[0].adapter.id == row["id"]
    assert engine.requests[2].adapter.id.startswith("ftckpt_")
    assert service.http.delete(f"/v1/models/{name}").json() == {"id": name, "object": "model", "deleted": True}
    assert ask(service, model=name).status_code == 404
    assert ask(service, model=checkpoint).status_code == 404


@pytest.mark.usefixtures("engine")
def test_a_too_long_prompt_is_a_400_also_of_a_stream(service):
    long = [{"role": "user", "content": "x" * 600}]
    for stream in (False, True):
        answer = ask(service, messages=long, stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    answer = ask(service, "/v1/completions", messages=..., prompt="x" * 600)
    assert answer.json()["error"]["param"] == "prompt"


def test_completions_take_text_texts_and_tokens(service, engine):
    answer = ask(service, "/v1/completions", messages=..., prompt="abc").json()
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", words_of(engine.requests[0], 6))
    assert answer["choices"][0]["finish_reason"] == "length"
    several = ask(service, "/v1/completions", messages=..., prompt=["abc", "de"], n=2).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["usage"] == {"prompt_tokens": 5, "completion_tokens": 24, "total_tokens": 29}
    assert several["choices"][0]["text"] == answer["choices"][0]["text"]
    tokens = ask(service, "/v1/completions", messages=..., prompt=[97, 98, 99]).json()
    assert tokens["choices"][0]["text"] == answer["choices"][0]["text"]
    assert engine.requests[-1].prompt_ids == (97, 98, 99)
    chunks = events_of(ask(service, "/v1/completions", messages=..., prompt="abc", stream=True).text)
    assert chunks.pop() == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_is_none_is_a_400(service, engine):
    for prompt in ("", [], [""], ["x"] * 9, [-1], [2**31], [[1, 2]], None, {"a": 1}, [1, "a"]):
        answer = ask(service, "/v1/completions", messages=..., prompt=prompt)
        assert answer.status_code == 400, (prompt, answer.text)
        assert answer.json()["error"]["param"].startswith("prompt")
    assert engine.requests == []


@pytest.mark.usefixtures("engine")
def test_a_chat_line_of_the_dataset_is_a_chat(service):
    messages = json.loads(CHAT_LINE)["messages"]
    assert ask(service, messages=messages).status_code == 200
