"""The engine through a real socket: frames, refusals, readers that leave, readers that sleep."""

import asyncio
import contextlib
import json
import math
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from core.specs.generation import Frame
from core.specs.inspection import Inspected
from core.specs.preview import Preview
from tests.worker.engine.conftest import BASE
from worker.engine import http as http_module
from worker.engine.http import Desk, create_app
from worker.engine.intake import Refused
from worker.engine.process import Server

PREVIEW = {
    "format": "text",
    "container": "jsonl",
    "context": 9,
    "max_seq_length": 8,
    "n_examined": 1,
    "rows": (),
    "n_errors": 0,
    "errors": (),
    "n_warnings": 0,
    "warnings": (),
}
TOKEN = "a-token-of-the-tests"
HEADERS = {"authorization": f"Bearer {TOKEN}"}


def body(**asked):
    sampling = {"temperature": 0.0, "max_tokens": 8} | asked.pop("sampling", {})
    return {"request_id": "r-1", "base_model": BASE, "prompt": "hello", "sampling": sampling} | asked


def still():
    """A clock that stands, so that a loop that is held does not count as dead."""
    return 1000.0


class House:
    """An engine's loop, its server, and a client."""

    def __init__(self, kitchen):
        self.kitchen, self.engine = kitchen, kitchen.engine
        self._gate, self._free_tokens = threading.Event(), math.inf
        self._outcomes, self.engine._forward.outcomes = self.engine._forward.outcomes, self._gated
        self.desk = Desk(BASE, TOKEN, 4096, self._measure, self._preview, self._inspect, kitchen.engine, kitchen.intake)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = Server(uvicorn.Config(create_app(self.desk), lifespan="off", log_level="error"))
        self._loop = threading.Thread(target=kitchen.engine.run)
        self._serving = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])))
        self._loop.start()
        self._serving.start()
        self.client = httpx.Client(base_url=self.url, headers=HEADERS, timeout=60, trust_env=False)

    def _gated(self, work):
        if self.engine.tokens >= self._free_tokens:
            self._gate.wait()
        return self._outcomes(work)

    def hold(self, *, after=0):
        """Once so many tokens are drawn the next step begins, and ends after release()."""
        self._free_tokens = after

    def release(self):
        """No step is held any more."""
        self._free_tokens = math.inf
        self._gate.set()

    def _measure(self, spec):
        if spec.file_sha256 == "0" * 64:
            raise Refused(400, "file_not_found", "the file is not in the store", "file_sha256")
        return {"tokens": 7}

    def _preview(self, spec):
        if spec.rows is None:
            raise Refused(400, "file_not_found", "the file is not in the store", "file_sha256")
        return Preview(**PREVIEW)

    def _inspect(self, spec):
        if spec.file_sha256 == "0" * 64:
            raise Refused(400, "invalid_adapter", "It holds NaN", "file")
        return Inspected(sha256=spec.file_sha256, size_bytes=3, peft_type="LORA", parameters=2, details={})

    def stream(self, **asked):
        """The frames of one request."""
        with self.opened(**asked) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"] == "application/x-ndjson"
            return [Frame.model_validate_json(line) for line in answer.iter_lines() if line]

    def opened(self, **asked):
        """One request's answer, accepted by the engine and still to be read."""
        return self.client.stream("POST", "/generate", json=body(**asked))

    def running(self):
        return self.client.get("/status").json()["running"]

    def wait(self, holds, within_s=60):
        """Until holds() is true."""
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)

    def close(self):
        self.release()
        self.client.close()
        self.engine.stop()
        self._server.should_exit = True
        self._loop.join(20)
        self._serving.join(20)
        self._listener.close()


@pytest.fixture
def new_house(new_kitchen):
    with contextlib.ExitStack() as stack:

        def new(**engine):
            house = House(new_kitchen(**engine))
            stack.callback(house.close)
            return house

        yield new


@pytest.fixture
def house(new_house):
    return new_house()


def test_frames_arrive_whole_and_end_with_a_reason(house):
    frames = house.stream()
    assert [f.seq for f in frames] == list(range(8))
    assert frames[0].prompt_ids
    assert [f.fin for f in frames] == [None] * 7 + ["length"]
    assert sum(len(f.ids) for f in frames) == 8


def test_many_readers_at_once_each_get_what_they_get_alone(house):
    adapters = [None, *(house.kitchen.publish(seed=s, r=s).model_dump() for s in (4, 8))]
    asked = [{"prompt": f"reader {i}", "adapter": adapters[i % 3]} for i in range(12)]
    alone = [[i for f in house.stream(**a) for i in f.ids] for a in asked]
    together = [None] * 12

    def read(at):
        together[at] = [i for f in house.stream(**asked[at]) for i in f.ids]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_an_adapter_that_is_not_there_is_the_first_frames_error(house):
    frames = house.stream(adapter={"id": "gone", "sha256": "0" * 64})
    assert [f.error and f.error.code for f in frames] == ["adapter_unavailable"]


def test_a_reader_that_leaves_takes_its_row_with_it(house):
    house.hold(after=1)
    with house.opened(sampling={"max_tokens": 50}) as answer:
        next(answer.iter_lines())
        assert house.running() == 1
    house.wait(lambda: house.engine._cancelled)
    house.release()
    house.wait(lambda: house.running() == 0)
    assert house.engine.tokens == 2  # that of the step under way, and none after it


def test_a_reader_that_leaves_while_its_row_waits_frees_its_place_in_the_queue(new_house):
    house = new_house(rows=1, clock=still)
    house.hold()
    with house.opened(sampling={"max_tokens": 50}):
        house.wait(lambda: house.running() == 1)
        with house.opened():
            assert house.client.get("/status").json()["waiting"] == 1
        house.wait(lambda: house.engine._cancelled)
        house.release()
        house.wait(lambda: house.engine.is_idle)
    assert house.engine.tokens == 50


def test_a_reader_that_sleeps_holds_up_nobody(house):
    with socket.create_connection(("127.0.0.1", house.port)) as sleeper:
        content = json.dumps(body(sampling={"max_tokens": 50})).encode()
        lines = ["POST /generate HTTP/1.1", "host: x", f"authorization: Bearer {TOKEN}"]
        head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""])
        sleeper.sendall(head.encode() + content)
        house.wait(lambda: house.engine.tokens >= 50 or house.running() == 1)
        assert house.stream(sampling={"max_tokens": 50})[-1].fin == "length"
        house.wait(lambda: house.running() == 0)


def test_a_reader_that_takes_nothing_is_given_up(new_kitchen, monkeypatch):
    """Its socket's buffers would take these few frames, so the wait is made at send()."""
    monkeypatch.setattr(http_module, "READER_S", 0.05)
    kitchen = new_kitchen()
    cancelled = []
    monkeypatch.setattr(kitchen.engine, "cancel", cancelled.append)

    async def never(*_):
        await asyncio.Event().wait()

    async def start_only(message):
        if message["type"] == "http.response.body":
            await never()

    async def read():
        box = http_module.Box(asyncio.get_running_loop())
        box.put(Frame(seq=0, text="x"))
        await asyncio.wait_for(http_module.FrameStream(box, kitchen.engine, 7)({}, never, start_only), 60)

    asyncio.run(read())
    assert cancelled == [7]


def test_a_row_that_waits_shows_signs_of_life_while_the_loop_turns(new_house, monkeypatch):
    monkeypatch.setattr(http_module, "SIGN_OF_LIFE_S", 0.05)
    house = new_house(rows=1, clock=still)
    house.hold()
    with house.opened(sampling={"max_tokens": 30}):
        house.wait(lambda: house.running() == 1)
        with house.opened(sampling={"max_tokens": 1}) as second:
            lines = second.iter_lines()
            assert next(lines) == ""
            house.release()
            rest = list(lines)
    assert [Frame.model_validate_json(line).seq for line in rest if line] == [0]


def test_a_row_that_waits_shows_no_sign_of_life_while_the_loop_stands(kitchen, monkeypatch):
    monkeypatch.setattr(http_module, "SIGN_OF_LIFE_S", 0.01)
    turns = iter([False, False, True])
    monkeypatch.setattr(type(kitchen.engine), "is_alive", property(lambda _: next(turns)))

    async def frames():
        box = http_module.Box(asyncio.get_running_loop())
        return await http_module.FrameStream(box, kitchen.engine, 7)._frames()

    assert asyncio.run(frames()) == []
    assert list(turns) == []


def test_a_full_engine_answers_503_with_a_time_to_come_back(new_house):
    house = new_house(rows=1, max_waiting=1, clock=still)
    house.hold()
    with house.opened():
        house.wait(lambda: house.running() == 1)
        with house.opened():
            refused = house.client.post("/generate", json=body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_overloaded")
    assert refused.json()["error"]["retryable"]
    assert int(refused.headers["retry-after"]) >= 1


def test_an_engine_that_drains_or_still_opens_answers_503(house):
    house.engine.drain(0)
    assert house.client.post("/generate", json=body()).json()["error"]["code"] == "engine_unavailable"
    house.desk.engine = None
    assert house.client.post("/generate", json=body()).status_code == 503
    assert house.client.get("/ready").status_code == 503
    assert house.client.get("/live").status_code == 200


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}x"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/generate"), ("POST", "/measure"), ("POST", "/preview"), ("POST", "/inspect"), ("GET", "/status")],
)
def test_without_the_token_nothing_is_answered(house, method, path, header):
    headers = {} if header is None else {"authorization": header}
    answer = httpx.request(method, house.url + path, json=body(), headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_health_needs_no_token(house, path):
    assert httpx.get(house.url + path, trust_env=False).status_code == 200


def test_liveness_is_the_step_loops_turning_not_the_servers_answering(house, monkeypatch):
    monkeypatch.setattr(type(house.engine), "is_alive", property(lambda _: False))
    assert house.client.get("/live").status_code == 503
    assert house.client.get("/ready").status_code == 503


SURROGATE = b'{"request_id":"r","base_model":"tiny","prompt":"\\ud800","sampling":{}}'


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"", 400, None),
        (b"not json", 400, None),
        (b"[" * 100_0, 400, None),
        (
            b'{"request_id":"r","base_model":"tiny","sampling":{"temperature":NaN},"prompt":"x"}',
            400,
            "sampling.temperature",
        ),
        (
            b'{"request_id":"r","base_model":"tiny","sampling":{"temperature":1e999},"prompt":"x"}',
            400,
            "sampling.temperature",
        ),
        (SURROGATE, 400, None),
        (b"\xff\xfe", 400, None),
        (json.dumps(body(surprise=1)).encode(), 400, "surprise"),
        (json.dumps(body(sampling={"max_tokens": 0})).encode(), 400, "sampling.max_tokens"),
        (json.dumps(body(sampling={"top_p": 0})).encode(), 400, "sampling.top_p"),
        (json.dumps(body(sampling={"seed": 2**63})).encode(), 400, "sampling.seed"),
        (json.dumps(body(sampling={"stop": [""]})).encode(), 400, "sampling.stop.0"),
        (json.dumps(body(adapter={"id": "x", "sha256": "../../etc"})).encode(), 400, "adapter.sha256"),
        (json.dumps(body(prompt=None, prompt_ids=[2**70])).encode(), 400, "prompt_ids"),
        (json.dumps(body(prompt="x" * 5000)).encode(), 413, None),
        (json.dumps(body(prompt="x" * 500)).encode(), 400, "prompt"),
        (json.dumps(body(base_model="other")).encode(), 404, "model"),
    ],
)
def test_bad_input_is_refused_in_one_shape_without_repeating_it(house, content, status, param):
    answer = house.client.post("/generate", content=content)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"code", "message", "param", "retryable"}
    assert param is None or error["param"] == param
    assert "xxxx" not in answer.text
    assert house.stream()[-1].fin == "length"


def test_a_prompt_beyond_the_context_names_its_tokens(house):
    error = house.client.post("/generate", json=body(prompt="x" * 100)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "100 tokens" in error["message"]


def test_measuring_answers_or_refuses(house):
    asked = {"base_model": BASE, "file_sha256": "a" * 64}
    assert house.client.post("/measure", json=asked).json() == {"tokens": 7}
    missing = house.client.post("/measure", json=asked | {"file_sha256": "0" * 64})
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "file_not_found")
    assert house.client.post("/measure", json=asked | {"base_model": "other"}).status_code == 404


def test_a_preview_is_answered_or_refused(house):
    asked = {"base_model": BASE, "rows": [{"text": "a"}], "max_tokens": 8}
    assert Preview.model_validate(house.client.post("/preview", json=asked).json()) == Preview(**PREVIEW)
    by_file = {"base_model": BASE, "file_sha256": "0" * 64, "max_tokens": 8}
    missing = house.client.post("/preview", json=by_file)
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "file_not_found")
    assert house.client.post("/preview", json=asked | {"base_model": "other"}).status_code == 404
    assert house.client.post("/preview", json=asked | {"limit": 33}).status_code == 400
    house.desk.is_draining = True
    assert house.client.post("/preview", json=asked).status_code == 503


def test_status_counts(house):
    house.stream(adapter=house.kitchen.publish().model_dump())
    status = house.client.get("/status").json()
    assert (status["base_model"], status["is_ready"], status["rows"]) == (BASE, True, 8)
    assert (status["tokens"], status["running"], status["waiting"]) == (8, 0, 0)
    assert len(status["adapters"]["resident"]) == 1
    assert status["adapters"]["bytes"] > 0


def test_a_strangers_adapter_is_inspected_or_refused_with_words(house):
    asked = {"base_model": BASE, "file_sha256": "a" * 64}
    found = Inspected.model_validate(house.client.post("/inspect", json=asked).json())
    assert (found.sha256, found.peft_type) == ("a" * 64, "LORA")
    refused = house.client.post("/inspect", json=asked | {"file_sha256": "0" * 64})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_adapter")
    assert house.client.post("/inspect", json=asked | {"base_model": "other"}).status_code == 404
    assert house.client.post("/inspect", json=asked | {"format": "loralib"}).status_code == 400
    house.desk.is_draining = True
    assert house.client.post("/inspect", json=asked).status_code == 503


def test_a_schema_that_cannot_be_held_to_is_a_400_before_any_stream(house):
    schema = json.dumps({"type": "object", "properties": {"a": {"not": {}}}})
    answer = house.client.post("/generate", json=body(json_schema=schema))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (
        "invalid_json_schema",
        "response_format.json_schema.schema.properties.a",
    )


def test_a_row_that_is_only_read_is_one_frame(house):
    (frame,) = house.stream(read={"what": "embedding"})
    assert (frame.fin, frame.ids, frame.text, frame.likelihoods) == ("stop", (), "", None)
    assert frame.embedding
    (frame,) = house.stream(read={"what": "likelihood", "answer": "yes"}, top_logprobs=1)
    assert [one.id for one in frame.likelihoods] == list(frame.prompt_ids[-3:])
    (whole,) = house.stream(read={"what": "likelihood"})
    assert [one.logprob is None for one in whole.likelihoods] == [True] + [False] * 4
    assert frame.embedding is None
