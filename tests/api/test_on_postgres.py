"""What the front end asks of a database in its own words, asked of Postgres."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import BASE, running
from sqlalchemy import select

from core.blobs import open_store
from core.records import jobs
from core.records.tables import Job
from core.specs.training import DPO, TrainSpec


@pytest.fixture
def service(service_on_postgres):
    return service_on_postgres


def test_metadata_and_cursors(service):
    ids = [service.job(metadata={"team": f"t{n % 2}", "a.b c": "x"}).json()["id"] for n in range(3)]
    bare = service.job().json()["id"]

    def listed(**query):
        return [job["id"] for job in service.http.get("/v1/fine_tuning/jobs", params=query).json()["data"]]

    assert listed(**{"metadata[team]": "t0", "metadata[a.b c]": "x"}) == [ids[2], ids[0]]
    assert listed(metadata="null") == [bare]
    assert listed(after=ids[2]) == [ids[1], ids[0]]


def test_the_same_write_at_once_makes_one_job(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}

    def create(_):
        return service.http.post("/v1/fine_tuning/jobs", json=body, headers={"idempotency-key": "race"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_the_stock_clients_own_repetition(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}

    def create(count):
        headers = {"x-stainless-retry-count": count}
        return service.http.post("/v1/fine_tuning/jobs", json=body, headers=headers).json()["id"]

    first, repeated, meant = create("0"), create("1"), create("0")
    assert first == repeated != meant


def test_a_finished_adapter_is_asked_and_deleted(service):
    job = service.adapter()
    ask = {"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with running(service):
        assert service.http.post("/v1/chat/completions", json=ask).status_code == 200
    assert service.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"][0]["kind"] == "succeeded"
    assert service.http.delete(f"/v1/models/{job['fine_tuned_model']}").status_code == 200
    assert service.http.post("/v1/chat/completions", json=ask).status_code == 404


def test_the_pace_of_a_kind_of_job_is_that_of_its_own_kind(service):
    for method, pace in (("lora", 100.0), ("lora", 300.0), ("prompt_tuning", 7.0)):
        job_id = service.job(peft={"type": method}).json()["id"]
        held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
        took = {"memory_bytes": 1, "tokens_per_s": pace}
        blob = open_store(service.settings).put_bytes(b"zip")
        told = {"peft_type": "LORA", "details": {}, "step": 1, "trained_tokens": 1, "measured": took}
        jobs.succeed(service.database, held, adapter=blob, **told)
    with service.database.session() as session:
        lora = TrainSpec.model_validate(session.scalars(select(Job.spec).order_by(Job.created_at)).first())
        assert jobs.paces(session, lora, newest=9) == [300.0, 100.0]
        assert jobs.paces(session, lora, newest=1) == [300.0]
        for other in (
            {"method": lora.method.model_copy(update={"base_precision": "nf4"})},
            {"dpo": DPO()},
            {"activation_checkpointing": True},
        ):
            assert jobs.paces(session, lora.model_copy(update=other), newest=9) == []
