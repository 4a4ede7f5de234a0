"""Pausing, resuming and retrying jobs over HTTP."""

import pytest
from sqlalchemy import select, update

from core.records import jobs
from core.records.tables import AuditEntry, Job


def post(service, job_id, move, **named):
    return service.http.post(f"/v1/fine_tuning/jobs/{job_id}/{move}", **named)


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert answer.headers.get("x-should-retry") == ("false" if status == 409 else None)
    return answer.json()["error"]


def test_a_waiting_job_is_paused_and_resumed(service):
    first, second = service.job().json(), service.job().json()
    assert [job["queue"]["position"] for job in (first, second)] == [1, 2]
    paused = post(service, first["id"], "pause").json()
    assert (paused["status"], paused["queue"]) == ("paused", None)
    listed = service.http.get("/v1/fine_tuning/jobs").json()["data"]
    assert [(job["id"], job["queue"] and job["queue"]["position"]) for job in listed] == [
        (second["id"], 1),
        (first["id"], None),
    ]
    resumed = post(service, first["id"], "resume").json()
    assert (resumed["status"], resumed["queue"]["position"]) == ("queued", 1)
    with service.database.session() as session:
        said = session.scalars(select(AuditEntry.action).where(AuditEntry.target == first["id"])).all()
    assert sorted(said) == ["job.paused", "job.resumed"]


def test_a_running_job_says_that_it_is_asked_to_rest(service):
    job_id = service.job().json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    asked = post(service, job_id, "pause").json()
    assert (asked["status"], asked["pause_requested_at"] is not None) == ("running", True)
    assert jobs.beat(service.database, held, lease_s=60) is jobs.Asked.TO_PAUSE
    assert jobs.drain(service.database, held) == "paused"
    assert service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "paused"
    assert post(service, job_id, "cancel").json()["status"] == "cancelled"


def test_what_cannot_be_paused_resumed_or_retried_says_so(service):
    waiting, done = service.job().json()["id"], service.adapter()["id"]
    assert error_of(post(service, waiting, "resume"), 409)["code"] == "job_not_resumable"
    assert error_of(post(service, waiting, "retry"), 409)["code"] == "job_not_retryable"
    assert error_of(post(service, done, "pause"), 409)["code"] == "job_not_pausable"
    assert error_of(post(service, done, "resume"), 409)["code"] == "job_not_resumable"


@pytest.mark.parametrize("move", ["pause", "resume", "retry"])
def test_a_stranger_s_job_is_not_there(service, move):
    job_id = service.job().json()["id"]
    answer = service.stranger().post(f"/v1/fine_tuning/jobs/{job_id}/{move}")
    assert error_of(answer, 404)["code"] == "fine_tune_not_found"


def test_a_retry_is_a_new_job_of_the_same_values(service):
    job = service.adapter("Support Desk", metadata={"k": "v"}, seed=7)
    again = post(service, job["id"], "retry").json()
    assert again["retry_of"] == job["id"]
    assert again["id"] != job["id"]
    same = ("model", "seed", "suffix", "metadata", "training_file", "hyperparameters", "peft", "training", "method")
    assert {name: again[name] for name in same} == {name: job[name] for name in same}
    assert (again["status"], again["fine_tuned_model"], again["trained_tokens"]) == ("queued", None, None)
    kinds = service.http.get(f"/v1/fine_tuning/jobs/{again['id']}/events").json()["data"]
    assert [event["kind"] for event in kinds] == ["retry", "created"]


def test_a_retry_that_is_asked_for_twice_is_one(service):
    job_id = service.adapter()["id"]
    named = {"headers": {"idempotency-key": "once"}}
    first, second = post(service, job_id, "retry", **named), post(service, job_id, "retry", **named)
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    by_itself = {"headers": {"x-stainless-retry-count": "1"}}
    third = post(service, job_id, "retry").json()
    assert post(service, job_id, "retry", **by_itself).json() == third
    assert post(service, job_id, "retry").json()["id"] != third["id"]


def test_a_retry_needs_what_the_job_started_from(service):
    source = service.adapter("first")
    name = source["fine_tuned_model"]
    file_id = service.upload().json()["id"]
    going_on = service.job(training_file=file_id, continue_from=name)
    job_id = going_on.json()["id"]
    assert post(service, job_id, "cancel").json()["status"] == "cancelled"
    assert post(service, job_id, "retry").json()["continue_from"] == name
    service.http.delete(f"/v1/models/{name}")
    error = error_of(post(service, job_id, "retry"), 400)
    assert (error["param"], error["code"]) == ("continue_from", "model_not_found")
    service.http.delete(f"/v1/files/{file_id}")
    error = error_of(post(service, job_id, "retry"), 400)
    assert (error["param"], error["code"]) == ("training_file", "file_not_found")


def test_a_retry_does_not_bring_back_a_base_model_that_is_no_longer_offered(service):
    job_id = service.job().json()["id"]
    with service.database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(base_model="gone"))
    post(service, job_id, "cancel")
    error = error_of(post(service, job_id, "retry"), 400)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
