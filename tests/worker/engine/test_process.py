"""The engine as a process: its presence, its measuring, its drain, and a loop that dies."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from core import peft_files
from core.blobs import open_store
from core.records import accounts, adapters, presences
from core.records.database import Database
from core.records.workers import ask_to_drain
from core.settings import Settings
from core.specs.generation import Frame
from core.specs.inspection import Inspected
from tests.worker.engine.conftest import make_tokenizer
from worker.engine import process as process_module
from worker.engine.process import LOOP_DIED, EngineProcess

ROW = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}


@pytest.fixture
def settings(new_base, tmp_path):
    """A tiny base model in a folder, and a database that is ready."""
    base = new_base("llama")
    base.set_attn_implementation("eager")
    base.save_pretrained(tmp_path / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    made = Settings(
        data_dir=tmp_path / "data",
        base_models={"tiny": str(tmp_path / "tiny")},
        default_base_model="tiny",
        device="cpu",
        precision="fp32",
        engine_rows=4,
        threads=1,
    )
    database = Database(made.database)
    database.migrate()
    database.close()
    return made


def wait_until(holds):
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


class Client(threading.Thread):
    """Does its work beside the process, which needs the main thread for its signals, and then asks it to stop."""

    def __init__(self, settings, work):
        super().__init__()
        self.settings, self.work, self.error = settings, work, None
        self.over = threading.Event()  # the process has ended, and with it its way with signals
        self.database = Database(settings.database)

    def presence(self):
        with self.database.session() as session:
            found = presences.alive(session, "engine", stale_s=120.0)
        return found[0] if found else None

    def ready(self):
        """The presence, once it says that it is ready."""
        wait_until(lambda: (found := self.presence()) and found.is_ready)
        found = self.presence()
        self.http = httpx.Client(
            base_url=found.url,
            headers={"authorization": f"Bearer {self.settings.engine_token}"},
            timeout=60,
            trust_env=False,
        )
        return found

    def run(self):
        try:
            self.work(self)
        except BaseException as error:  # noqa: BLE001 - raised by the test, in its own thread
            self.error = error
        finally:
            if not self.over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)


def live(settings, work, **asked):
    """The exit status of a process beside which work(client) was done."""
    client = Client(settings, work)

    async def run():
        process = EngineProcess(settings, **asked)
        client.start()
        try:
            return await process.run()
        finally:
            client.over.set()

    try:
        status = asyncio.run(run())
    finally:
        client.join(60)
        last = client.presence()
        client.database.close()
    if client.error:
        raise client.error
    assert last is None
    return status


def asked(**sampling):
    prompt = {"request_id": "r", "base_model": "tiny", "prompt": "hello"}
    return prompt | {"sampling": {"temperature": 1.0, "seed": 1} | sampling}


def test_an_nf4_engine_says_so_serves_its_base_in_4_bits_and_refuses_the_other(settings):
    def work(client):
        assert client.ready().details["base_precision"] == "nf4"
        answer = client.http.post("/generate", json=asked(max_tokens=3) | {"base_precision": "nf4"})
        assert Frame.model_validate_json(answer.text.splitlines()[-1]).fin
        refused = client.http.post("/generate", json=asked(max_tokens=3))
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "precision_unavailable")

    assert live(settings.model_copy(update={"engine_precision": "nf4"}), work) == 0


def test_it_is_ready_once_its_base_is_open_says_so_and_leaves_in_good_order(settings):
    def work(client):
        found = client.ready()
        assert (found.role, found.base_model) == ("engine", "tiny")
        assert {k: found.details[k] for k in ("context", "vocabulary", "precision", "device", "rows")} == {
            "context": 512,
            "vocabulary": 99,
            "precision": "fp32",
            "device": "cpu",
            "rows": 4,
        }
        assert client.http.get("/ready").status_code == 200
        answer = client.http.post("/generate", json=asked(max_tokens=3))
        frames = [Frame.model_validate_json(line) for line in answer.text.splitlines()]
        assert frames[0].prompt_ids
        assert frames[-1].fin

    assert live(settings, work) == 0


def test_it_keeps_a_strangers_adapter_and_refuses_another(settings, tmp_path, *, new_lora, new_facts):
    store = open_store(settings)
    facts = new_facts()
    peft_files.write(new_lora(facts), tmp_path / "good", "elsewhere/other")
    peft_files.pack(tmp_path / "good", tmp_path / "good.zip")
    good, bad = store.put(tmp_path / "good.zip"), store.put_bytes(b"no adapter")

    def work(client):
        client.ready()
        asked = {"base_model": "tiny", "file_sha256": good.sha256}
        found = Inspected.model_validate(client.http.post("/inspect", json=asked).json())
        assert store.size(found.sha256) == found.size_bytes
        assert "elsewhere/other" in found.warnings[0]
        assert (len(found.details["base_revision_sha256"]), found.details["computed_in"]) == (64, "fp32")
        refused = client.http.post("/inspect", json=asked | {"file_sha256": bad.sha256})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_adapter")
        assert list(settings.cache_dir.glob("inspect-*")) == []

    assert live(settings, work) == 0


def test_it_measures_a_dataset_by_its_own_tokeniser(settings):
    store = open_store(settings)
    rows = [{"messages": ROW}, {"messages": (ROW[0], {"role": "assistant", "content": "x" * 300})}]
    file = store.put_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    bad = store.put_bytes(b"not json\n")

    def work(client):
        client.ready()
        question = {"base_model": "tiny", "file_sha256": file.sha256, "max_tokens": 100}
        found = client.http.post("/measure", json=question).json()
        assert (found["n_examples"], found["context"]) == (2, 512)
        assert [row["line"] for row in found["too_long"]] == [2]
        assert found["shape"]["layers"] == 2
        assert found["largest"] is None
        schedule = {"n_epochs": 1, "batch_size": 2, "tokens_per_batch": 2048, "seed": 0}
        scheduled = client.http.post("/measure", json=question | {"schedule": schedule}).json()
        assert scheduled["largest"]["tokens"] == found["tokens"]
        one, both = (client.http.post("/measure", json=question | {"first": n}).json() for n in (1, 9))
        assert both["lengths"] == [one["tokens"], found["tokens"] - one["tokens"]]
        assert (one["lengths"], one["n_examples"], "lengths" in found) == ([one["tokens"]], 1, False)
        assert found["tokens"] > 300 < found["too_long"][0]["tokens"]
        for sha256, code in ((bad.sha256, "invalid_file"), ("0" * 64, "file_not_found")):
            refused = client.http.post("/measure", json=question | {"file_sha256": sha256})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        assert list(settings.cache_dir.glob("measure-*")) == []

    assert live(settings, work) == 0


def test_it_shows_the_rows_of_a_file_or_of_a_request_by_its_own_tokeniser(settings):
    store = open_store(settings)
    file = store.put_bytes(b"text,label\n" + b"hello,greeting\nhello,greeting\n")

    def work(client):
        client.ready()
        question = {"base_model": "tiny", "max_tokens": 40, "limit": 1}
        found = client.http.post("/preview", json=question | {"file_sha256": file.sha256}).json()
        assert (found["format"], found["container"], found["n_examined"]) == ("classification", "csv", 2)
        assert [(w["line"], w["code"]) for w in found["warnings"] if w["code"] == "duplicate"] == [(3, "duplicate")]
        [row] = found["rows"]
        assert (row["line"], row["label"], row["n_tokens"]) == (2, "greeting", len(row["tokens"]))
        [[first, end]] = row["trained_spans"]
        assert [t["label"] != -100 for t in row["tokens"]] == [first <= n < end for n in range(row["n_tokens"])]
        shown = client.http.post("/preview", json=question | {"rows": [{"messages": ROW}, {"nothing": 1}]}).json()
        assert [(error["line"], error["code"]) for error in shown["errors"]] == [(2, "unknown_format")]
        assert shown["rows"][0]["n_learned"] > 0
        for wrong, code in (({"file_sha256": "0" * 64}, "file_not_found"), ({}, "invalid_request")):
            refused = client.http.post("/preview", json=question | wrong)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        assert list(settings.cache_dir.glob("measure-*")) == []

    assert live(settings, work) == 0


class Gate(threading.Event):
    """Where steps wait from the first token after shut() until set(). Before that the engine warms itself up."""

    tokens = math.inf

    def shut(self, client):
        self.tokens = client.http.get("/status").json()["tokens"]


@pytest.fixture
def gate(monkeypatch):
    plain, made = process_module.Engine.step, Gate()

    def step(engine):
        if engine.tokens > made.tokens:
            made.wait()
        return plain(engine)

    monkeypatch.setattr(process_module.Engine, "step", step)
    yield made
    made.set()


@pytest.mark.parametrize(("is_late", "end"), [(False, ("length", None)), (True, (None, "migrate"))])
def test_asked_to_stop_it_finishes_rows_or_sends_them_elsewhere(settings, monkeypatch, gate, is_late, end):
    seen = {}
    monkeypatch.setattr(process_module, "CLOSE_S", 60)
    if is_late:
        run_out_of_time(monkeypatch, gate, lambda: "is_ready" in seen)

    def work(client):
        client.ready()
        gate.shut(client)
        with client.http.stream("POST", "/generate", json=asked(max_tokens=12)) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            while client.http.get("/ready").status_code == 200:
                time.sleep(0.01)
            seen["new"] = client.http.post("/generate", json=asked()).status_code
            seen["is_ready"] = client.presence().is_ready
            if not is_late:
                gate.set()
            last = [Frame.model_validate_json(line) for line in lines if line][-1]
        seen["end"] = (last.fin, last.error and last.error.code)

    assert live(settings, work, drain_s=60.0) == 0
    assert seen == {"new": 503, "is_ready": False, "end": end}


def run_out_of_time(monkeypatch, gate, is_seen):
    """The rows' time is over once is_seen(), and no step ends before the engine was told to stop."""
    drain, stop = process_module.Engine.drain, process_module.Engine.stop

    def late(engine, _):
        wait_until(is_seen)
        return drain(engine, 0)

    def stopped(engine):
        stop(engine)
        gate.set()

    monkeypatch.setattr(process_module.Engine, "drain", late)
    monkeypatch.setattr(process_module.Engine, "stop", stopped)


def test_drained_by_an_administrator_it_ends_its_rows_takes_no_more_and_stays(settings, monkeypatch, gate):
    seen = {}
    monkeypatch.setattr(process_module, "BEAT_S", 0.1)

    def work(client):
        client.ready()
        account, _ = accounts.create_project(client.database, slug="x", name="X", environment="local")
        gate.shut(client)
        with client.http.stream("POST", "/generate", json=asked(max_tokens=40)) as answer:
            lines = answer.iter_lines()
            next(lines)
            with client.database.writing() as session:
                assert ask_to_drain(session, account, client.presence().id)
            while client.http.get("/ready").status_code == 200:
                time.sleep(0.01)
            seen["new"] = client.http.post("/generate", json=asked()).status_code
            gate.set()
            last = [Frame.model_validate_json(line) for line in lines if line][-1]
        seen["end"] = (last.fin, last.error)
        beats = said_since(monkeypatch)
        wait_until(lambda: len(beats) > 3)
        seen["stays"] = (client.presence().is_ready, client.presence().details["status"]["is_draining"])
        seen["live"] = client.http.get("/live").status_code

    assert live(settings, work) == 0
    assert seen == {"new": 503, "end": ("length", None), "stays": (False, True), "live": 200}


def said_since(monkeypatch):
    """The beats from now on, as they are said."""
    beat, said = presences.beat, []

    def noted(*args, **named):
        said.append(beat(*args, **named))
        return said[-1]

    monkeypatch.setattr(presences, "beat", noted)
    return said


def test_a_step_loop_that_dies_ends_the_process_and_sends_rows_elsewhere(settings, monkeypatch):
    def work(client):
        client.ready()
        turn = process_module.Engine.step
        # With a row only: a loop that died before would not take it.
        monkeypatch.setattr(process_module.Engine, "step", lambda e: 1 / 0 if e.status()["waiting"] else turn(e))
        frames = client.http.post("/generate", json=asked(max_tokens=400)).text.splitlines()
        assert Frame.model_validate_json(frames[-1]).error.code == "migrate"

    assert live(settings, work) == LOOP_DIED


def test_a_base_model_that_cannot_be_opened_ends_the_process(settings, tmp_path):
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="tiny"):
        live(settings, lambda client: client.over.wait(60))


def test_a_silent_database_stops_no_row(settings, monkeypatch):
    tried = []
    monkeypatch.setattr(process_module, "BEAT_S", 0.1)

    def silent(*_, **__):
        tried.append(1)
        raise OSError

    def work(client):
        client.ready()
        monkeypatch.setattr(presences, "beat", silent)
        wait_until(lambda: len(tried) > 1)
        assert client.http.post("/generate", json=asked(max_tokens=2)).status_code == 200

    assert live(settings, work) == 0


def test_the_command_starts_it_and_sigterm_stops_it(settings):
    environment = {
        "PATH": os.environ["PATH"],
        "GRAFT_DATA_DIR": str(settings.data_dir),
        "GRAFT_BASE_MODELS": json.dumps(settings.base_models),
        "GRAFT_DEFAULT_BASE_MODEL": "tiny",
        "GRAFT_DEVICE": "cpu",
        "GRAFT_PRECISION": "fp32",
        "GRAFT_ENGINE_ROWS": "2",
        "GRAFT_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "worker.engine.main"], env=environment, stderr=subprocess.PIPE)
    client = Client(settings, print)
    try:
        client.ready()
        assert client.http.get("/live").status_code == 200
        process.terminate()
        assert process.wait(120) == 0
        assert client.presence() is None
        events = [json.loads(line)["event"] for line in process.stderr.read().splitlines()]
        assert events == ["engine.ready", "engine.draining"]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        client.database.close()


def test_it_tells_its_meters_in_its_presence_and_frees_what_is_deleted(settings, tmp_path, *, new_lora, new_facts):
    peft_files.write(new_lora(new_facts()), tmp_path / "made", "tiny")
    peft_files.pack(tmp_path / "made", tmp_path / "made.zip")
    blob = open_store(settings).put(tmp_path / "made.zip")

    def told(client):
        return client.presence().details["status"]

    def resident(client):
        return client.http.get("/status").json()["adapters"]["resident"]

    def work(client):
        client.ready()
        account, _ = accounts.create_project(client.database, slug="x", name="X", environment="local")
        with client.database.writing() as session:
            made = adapters.register(
                session, account, suffix=None, base_model="tiny", peft_type="LORA", blob=blob, details={}
            )
            name = made.name
        adapter = {"id": "a", "sha256": blob.sha256}
        client.http.post("/generate", json=asked(max_tokens=2) | {"adapter": adapter})
        wait_until(lambda: told(client)["by_adapter"].get(blob.sha256, {}).get("tokens", 0) >= 1)
        status = told(client)
        assert "adapters" not in status
        assert resident(client) == [blob.sha256]
        with client.database.writing() as session:
            assert adapters.delete(session, account, name)
        wait_until(lambda: not resident(client) and not list((settings.cache_dir / "adapters").glob("*.zip")))

    assert live(settings, work) == 0
