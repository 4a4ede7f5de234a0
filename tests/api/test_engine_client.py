"""What clients see when engines are busy, die, come back or fail: nothing missing, nothing twice, nothing silent."""

import json
import socket
import threading
import time
from itertools import pairwise

import pytest
from asking import HELLO, ask, events_of, eventually, usage_rows
from fake_engine import words_of
from serving import BASE, running


def test_without_an_engine_the_answer_is_to_come_again(service):
    answer = ask(service)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    streamed = ask(service, stream=True)
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (503, "engine_unavailable")


def test_a_busy_engine_is_passed_by_once(service, engine, second_engine):
    engine.script = [{"status": 503}]
    second_engine.script = [{"status": 503}]
    answer = ask(service)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_overloaded")
    assert answer.headers["retry-after"]
    assert [len(engine.requests), len(second_engine.requests)] == [1, 1]
    for one in (engine, second_engine):
        one.requests.clear()
    engine.script = [{"status": 503}]
    assert ask(service).status_code == 200
    assert len(second_engine.requests) == 1


def test_requests_beyond_an_engines_places_go_to_another_at_once(service):
    with running(service, rows=2) as one, running(service, rows=2) as other:
        one.pause_s = other.pause_s = 0.05
        for _ in range(2):  # the first time over, nothing is under way
            assert ask(service, n=4, max_tokens=9).status_code == 200
            assert [len(one.requests), len(other.requests)] == [2, 2]
            one.requests.clear()
            other.requests.clear()
        # What fits stays together, where its adapter or its prompt is known.
        assert ask(service, n=2, max_tokens=9).status_code == 200
        assert sorted([len(one.requests), len(other.requests)]) == [0, 2]


@pytest.mark.parametrize("death", [{"die_after": 0}, {"die_after": 3}, {"end_after": 2}, {"gap_at": 2}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stream_goes_on_at_another_engine_without_gap_or_repetition(service, engine, second_engine, death, stream):
    engine.script = [dict(death)]
    second_engine.script = [dict(death)]
    answer = ask(service, stream=stream, max_tokens=9)
    assert answer.status_code == 200, answer.text
    specs = [spec for one in (engine, second_engine) for spec in one.requests]
    first = next(spec for spec in specs if spec.messages)
    if stream:
        chunks = events_of(answer.text)[:-1]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
        assert answer.json()["usage"]["prompt_tokens"] == len("<user>hello")
        assert answer.json()["usage"]["completion_tokens"] == 9
    assert text == words_of(first, 9)
    assert len(specs) == 3
    if next(iter(death.values())):
        assert [spec.offset for spec in specs if not spec.messages]


def test_an_engine_that_comes_back_goes_on_with_its_own_stream(service, engine):
    engine.script = [{"die_after": 2}]
    answer = ask(service, max_tokens=5)
    assert answer.json()["choices"][0]["message"]["content"] == words_of(engine.requests[0], 5)
    assert [spec.offset for spec in engine.requests] == [0, 2]


def test_a_request_that_every_engine_fails_at_ends_with_an_error_event(service, engine):
    engine.script = [{"die_after": 1}] * 4
    chunks = events_of(ask(service, stream=True).text)
    assert chunks[-1]["error"]["code"] == "engine_failed"
    assert chunks[0]["choices"]
    assert len(engine.requests) == 4
    assert usage_rows(service) == [(BASE, len("<user>hello"), 4)]


def test_a_failure_of_one_request_is_told_in_the_stream_and_to_no_other(service, engine):
    error = {"code": "model_output_invalid", "message": "not finite"}
    engine.script = [{"fail_at": 2, "error": error}]
    chunks = events_of(ask(service, stream=True).text)
    assert (chunks[-1]["error"]["code"], chunks[-1]["error"]["type"]) == ("model_output_invalid", "server_error")
    assert "[DONE]" not in chunks
    engine.script = [{"fail_at": 0, "error": error}]
    answer = ask(service)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
    assert ask(service).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
def test_a_client_that_leaves_takes_its_request_out_of_the_engine(service, engine, stream, after):
    engine.script = [{"hang_after": after}]
    body = {"model": BASE, "messages": HELLO, "max_tokens": 6, "stream": stream}

    def leave():
        eventually(lambda: engine.running)
        time.sleep(0.1)
        assert engine.running
        connection.close()

    with socket.create_connection(service.url.removeprefix("http://").split(":")) as connection:
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        connection.sendall(head.encode() + content)
        leave()
    eventually(lambda: engine.cancelled and not engine.running)
    if after:
        eventually(lambda: usage_rows(service) == [(BASE, len("<user>hello"), after)])


def test_streams_do_not_mix(service, engine):
    engine.pause_s = 0.002
    texts = {}

    def one(seed):
        chunks = events_of(ask(service, stream=True, seed=seed, max_tokens=20).text)[:-1]
        texts[seed] = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {spec.sampling.seed: words_of(spec, 20) for spec in engine.requests}
    assert texts == expected
    assert all(a != b for a, b in pairwise(expected.values()))
