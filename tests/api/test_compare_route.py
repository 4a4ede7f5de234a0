"""One conversation, several models: side by side, whole and streamed, one failing without the others."""

import pytest
from asking import HELLO, events_of, eventually, usage_rows
from fake_engine import words_of
from serving import BASE


def compare(service, models, **fields):
    body = {"models": models, "messages": HELLO, "max_tokens": 4, "seed": 5, **fields}
    return service.http.post("/v1/compare", json=body)


@pytest.fixture
def models(service, engine):  # noqa: ARG001 - the adapters are served by it
    return [BASE, service.adapter("one")["fine_tuned_model"], service.adapter("two")["fine_tuned_model"]]


def test_all_models_answer_with_one_seed_each_metered_for_itself(service, engine, models):
    body = compare(service, models).json()
    assert (body["object"], body["seed"]) == ("comparison", 5)
    assert [one["model"] for one in body["results"]] == models
    assert [one["index"] for one in body["results"]] == [0, 1, 2]
    by_index = sorted(engine.requests, key=lambda spec: spec.request_id)
    assert [spec.sampling.seed for spec in by_index] == [5] * 3
    assert [one["message"]["content"] for one in body["results"]] == [words_of(spec, 4) for spec in by_index]
    assert len({one["message"]["content"] for one in body["results"]}) > 1
    for one in body["results"]:
        assert (one["finish_reason"], one["error"]) == ("length", None)
        assert one["usage"] == {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
        assert 0 <= one["latency"]["first_token_ms"] <= one["latency"]["total_ms"]
    assert sorted(usage_rows(service)) == sorted((model, 11, 4) for model in models)
    assert len({spec.affinity for spec in engine.requests}) == 1


def test_rows_of_one_comparison_go_to_one_engine_and_those_of_chats_where_their_adapter_is(
    service, engine, second_engine, models
):
    for seed in range(12):
        before = len(engine.requests), len(second_engine.requests)
        compare(service, models, seed=seed)
        after = len(engine.requests), len(second_engine.requests)
        assert sorted((after[0] - before[0], after[1] - before[1])) == [0, 3]
    # Negative control: it is not always the same engine.
    assert engine.requests
    assert second_engine.requests


def test_a_stream_says_the_same_piece_by_piece_with_each_model_s_index(service, models):
    whole = compare(service, models).json()["results"]
    events = events_of(compare(service, models, stream=True).text)
    assert events.pop() == "[DONE]"
    assert {event["object"] for event in events} == {"comparison.chunk"}
    for one in whole:
        own = [event for event in events if event["index"] == one["index"]]
        assert {event["model"] for event in own} == {one["model"]}
        assert "".join(event["delta"].get("content", "") for event in own) == one["message"]["content"]
        assert own[-1]["finish_reason"] == "length"
        assert own[-1]["usage"] == one["usage"]
        assert own[-1]["latency"]["total_ms"] > 0
        assert all("usage" not in event for event in own[:-1])


def test_a_seed_that_nobody_gave_is_drawn_once_and_named(service, engine, models):
    body = compare(service, models, seed=None).json()
    assert {spec.sampling.seed for spec in engine.requests} == {body["seed"]}
    assert compare(service, models, seed=body["seed"]).json()["results"][1]["message"] == body["results"][1]["message"]


BROKEN = {"code": "model_output_invalid", "message": "not finite"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_does_not_end_the_others(service, engine, models, stream):
    engine.script = [{"fail_at": 1, "error": BROKEN}]
    answer = compare(service, models, stream=stream)
    assert answer.status_code == 200
    ends = [event for event in events_of(answer.text)[:-1] if "usage" in event] if stream else answer.json()["results"]
    problems = [end["error"] for end in ends if end["error"]]
    assert [problem["code"] for problem in problems] == ["model_output_invalid"]
    assert sorted(str(end["finish_reason"]) for end in ends) == ["None", "length", "length"]
    assert len(usage_rows(service)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_comparison_that_no_model_answers_is_an_error(service, engine, models, stream):
    engine.script = [{"fail_at": 0, "error": BROKEN}] * 3
    answer = compare(service, models, stream=stream)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "model_output_invalid"


def test_what_cannot_be_compared_is_refused(service, engine, models):
    for fields, param in [
        ({"models": []}, "models"),
        ({"models": [BASE] * 9}, "models"),
        ({"models": [""]}, "models.0"),
        ({"n": 2}, "n"),
        ({"model": BASE}, "model"),
        ({"messages": []}, "messages"),
    ]:
        answer = compare(service, **{"models": models} | fields)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), fields
    missing = compare(service, [BASE, "gpt-9"])
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert engine.requests == []


def test_each_model_may_have_a_conversation_of_its_own_in_the_same_batch(service, engine, models):
    turns = [[*HELLO, {"role": "assistant", "content": f"said {n}"}, *HELLO] for n in range(3)]
    body = {"models": models, "conversations": turns, "max_tokens": 4, "seed": 5}
    results = service.http.post("/v1/compare", json=body).json()["results"]
    by_index = sorted(engine.requests, key=lambda spec: spec.request_id)
    assert [[turn.content for turn in spec.messages] for spec in by_index] == [
        [turn["content"] for turn in own] for own in turns
    ]
    assert [one["message"]["content"] for one in results] == [words_of(spec, 4) for spec in by_index]
    assert len({(spec.affinity, spec.sampling.seed) for spec in engine.requests}) == 1
    for fields, param in [
        (body | {"messages": HELLO}, "messages"),
        (body | {"conversations": turns[:2]}, "conversations"),
        (body | {"conversations": [[], *turns[1:]]}, "conversations.0"),
        ({"models": models}, "messages"),
    ]:
        refused = service.http.post("/v1/compare", json=fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_reader_that_leaves_ends_every_row(service, engine, models):
    engine.pause_s = 0.05
    body = {"models": models, "messages": HELLO, "max_tokens": 400, "seed": 5, "stream": True}
    with service.http.stream("POST", "/v1/compare", json=body) as answer:
        next(answer.iter_lines())
    eventually(lambda: len(engine.cancelled) == 3 and not engine.running)
