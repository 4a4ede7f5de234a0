import subprocess
import time

import httpx
import redis
from serving import BASE

from api import processes
from api.queue import Queue
from core.records import presences
from core.records.tables import new_id
from core.settings import Settings


def ready(service):
    answer = httpx.get(f"{service.url}/readyz")
    return answer.status_code, answer.json()["checks"]


def test_the_service_is_ready_once_every_part_is(service, engine, monkeypatch):
    down = {"api": True, "database": True, "queue": False, "trainer": False, "engine": True}
    assert ready(service) == (503, down)
    presences.beat(service.database, new_id("trainer-"), role="trainer", is_ready=True, details={})
    assert ready(service) == (503, down | {"trainer": True})
    monkeypatch.setattr("api.queue.Queue.is_up", lambda _: True)
    assert ready(service) == (200, dict.fromkeys(down, True))
    assert engine.requests == []


def test_an_engine_that_is_loading_is_not_ready(service):
    said = {"role": "engine", "details": {}, "url": "http://127.0.0.1:9", "base_model": BASE}
    presences.beat(service.database, new_id("engine-"), is_ready=False, **said)
    assert ready(service)[1]["engine"] is False


def test_the_process_says_that_it_lives_and_counts_what_it_did(service):
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    service.http.get("/v1/files/file-of-a-customer")
    service.http.request("BREW", "/v1/coffee")
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'graft_http_requests_total{method="GET",route="/v1/files/{file_id}",status="404"} 1.0' in metrics
    assert 'method="other",route="none"' in metrics
    assert "file-of-a-customer" not in metrics
    assert "BREW" not in metrics


def test_the_bell_reaches_a_real_broker(tmp_path):
    settings = Settings(data_dir=tmp_path)
    command = processes.valkey(settings)
    (tmp_path / "valkey").mkdir()
    broker = subprocess.Popen(command.argv, stdout=subprocess.DEVNULL)
    try:
        queue = Queue(settings)
        deadline = time.monotonic() + 60
        while not queue.is_up():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert queue.ring("ftjob-1")
        with redis.Redis(unix_socket_path=str(settings.socket)) as client:
            assert client.llen("graft:train") == 1
        queue.close()
    finally:
        broker.terminate()
        broker.wait(60)


def test_it_waits_for_the_first_of_the_engines_and_not_for_the_others(service):
    said = {"role": "engine", "url": "http://127.0.0.1:9", "base_model": BASE, "is_ready": True}
    presences.beat(service.database, "engine-small", details={"base_precision": "nf4"}, **said)
    assert ready(service)[1]["engine"] is False
    presences.beat(service.database, "engine-plain", details={"base_precision": "bf16"}, **said)
    assert ready(service)[1]["engine"] is True
