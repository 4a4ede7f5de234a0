"""POST /v1/fine_tuning/estimate, and the estimate of a job: what it says, what it refuses, what is kept beside it."""

import pytest
from serving import BASE

from core.blobs import open_store
from core.records import jobs, presences
from core.specs.estimate import BaseShape, SiteShape

SITES = tuple(
    SiteShape(name=f"model.layers.{layer}.{name}", width_in=64, width_out=64)
    for layer in range(4)
    for name in ("self_attn.q_proj", "mlp.down_proj")
)
SHAPE = BaseShape(
    hidden=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_width=16,
    vocabulary=1000,
    is_tied=True,
    table="model.embed_tokens",
    sites=SITES,
    value_bytes=2,
)
MEASURED = {
    "tokens": 60_000,
    "learned_tokens": 30_000,
    "n_examples": 300,
    "shape": SHAPE.model_dump(mode="json"),
    "largest": {"tokens": 16_384, "learned": 8192, "squares": 4_800_000, "longest_row": 300},
}


@pytest.fixture
def counting(engine):
    engine.measured = MEASURED
    return engine


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def ask(service, **fields):
    fields.setdefault("training_file", service.upload().json()["id"])
    return service.http.post("/v1/fine_tuning/estimate", json={"model": BASE, **fields})


def trainer_with(service, memory_bytes):
    details = {"device": {"kind": "cpu", "memory_bytes": memory_bytes}}
    presences.beat(service.database, "trainer-1", role="trainer", is_ready=True, details=details)


def test_an_estimate_counts_and_resolves_and_makes_nothing(service, counting):
    answer = ask(service, peft={"type": "lora", "r": 8}, hyperparameters={"n_epochs": 2, "batch_size": 4})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["object"], found["model"]) == ("fine_tuning.estimate", BASE)
    assert (found["tokens"], found["learned_tokens"], found["steps"]) == (120_000, 60_000, 150)
    assert found["trainable_parameters"] == 8 * 8 * 128
    assert 4 * 8 * 8 * 128 < found["adapter_bytes"] < 4 * 8 * 8 * 128 + 10_000
    terms = dict(found["memory"])
    assert terms.pop("total") == sum(terms.values())
    assert (found["fits"], found["device"], found["seconds_basis"]) == (None, None, "default")
    assert found["hyperparameters"]["batch_size"] == 4
    assert (found["training"]["optimizer"], found["training"]["tokens_per_batch"]) == ("adamw", 2048)
    [asked] = counting.measures
    assert (asked.schedule.batch_size, asked.schedule.n_epochs, asked.schedule.tokens_per_batch) == (4, 2, 2048)
    assert service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.usefixtures("counting")
def test_a_job_keeps_its_estimate(service):
    asked = {"training_file": service.upload().json()["id"], "seed": 5}
    job = service.job(**asked).json()
    assert job["measured"] is None
    found = ask(service, **asked).json()
    assert job["estimate"] == {name: found[name] for name in job["estimate"]}


def test_a_job_that_cannot_fit_is_refused_with_the_knob_that_makes_it_fit(service, counting):
    kept = {"activation_checkpointing": False}
    least, _ = ask(service, training=kept).json()["memory_range"]
    trainer_with(service, least - 1)
    file = service.upload().json()["id"]
    error = error_of(service.job(training_file=file, training=kept))
    assert (error["code"], error["param"]) == ("does_not_fit", "training.activation_checkpointing")
    assert "set training.activation_checkpointing to true or training.tokens_per_batch to" in error["message"]
    again, turn, *_ = error["details"]
    assert (again["value"], turn["param"]) == (True, "training.tokens_per_batch")
    assert f"training.tokens_per_batch to {turn['value']}" in error["message"]
    told = ask(service, training_file=file, training=kept).json()
    assert (told["fits"], [one["value"] for one in told["advice"][:2]]) == (False, [True, turn["value"]])
    assert service.http.get("/v1/fine_tuning/jobs").json()["data"] == []
    # With a byte more nobody knows: it is taken, and told.
    trainer_with(service, least)
    told = ask(service, training_file=file, training=kept).json()
    assert (told["fits"], told["advice"][0]["param"]) == (True, "training.activation_checkpointing")
    assert "within the error" in told["warning"]
    trainer_with(service, least - 1)
    # What it advises is taken: the one as it stands, the other once the engine counts the smaller micro-batch.
    assert service.job(training_file=file, training={"activation_checkpointing": True}).status_code == 200
    counting.measured = MEASURED | {"largest": MEASURED["largest"] | {"tokens": turn["value"], "squares": 200_000}}
    asked = kept | {"tokens_per_batch": turn["value"]}
    assert service.job(training_file=file, training=asked).status_code == 200


@pytest.mark.usefixtures("counting")
def test_auto_runs_layers_again_where_the_device_asks_for_it_and_says_so(service):
    total = ask(service).json()["memory"]["total"]
    trainer_with(service, total)
    told, job = ask(service).json(), service.job().json()
    for said in (told, told["training"], job["training"], job["estimate"]):
        assert (said["activation_checkpointing"], said["activation_offload"]) == (False, False)
    trainer_with(service, total - 1)
    told, job = ask(service).json(), service.job().json()
    for said in (told, told["training"], job["training"], job["estimate"]):
        assert (said["activation_checkpointing"], said["activation_offload"]) == (True, False)
    assert told["memory"]["total"] < total
    [spec] = {str(service.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["training"])}
    assert spec == str(job["training"])
    # Whoever says false is believed.
    kept = service.job(training={"activation_checkpointing": False}).json()
    assert kept["training"]["activation_checkpointing"] is False


@pytest.mark.usefixtures("counting")
def test_a_gpu_too_small_even_so_has_the_inputs_wait_in_host_memory(service):
    total = ask(service, training={"activation_checkpointing": True}).json()["memory"]["total"]
    details = {"device": {"kind": "cuda", "memory_bytes": total // 8}}
    presences.beat(service.database, "trainer-1", role="trainer", is_ready=True, details=details)
    for asked, expected in (("auto", True), (True, True), (False, False)):
        said = ask(service, training={"activation_checkpointing": asked}).json()["training"]
        assert (said["activation_checkpointing"], said["activation_offload"]) == (expected, expected)
    error = error_of(ask(service, training={"activation_offload": True}), 400)
    assert "activation_offload" in error["param"]


@pytest.mark.usefixtures("counting")
def test_the_same_job_on_a_device_large_enough_is_taken(service):
    """The negative control."""
    trainer_with(service, 1 << 40)
    job = service.job().json()
    assert (job["status"], job["estimate"]["fits"]) == ("queued", True)


def test_where_nothing_can_be_foretold_a_job_is_taken_and_an_estimate_is_not_given(service):
    trainer_with(service, 1 << 20)
    assert service.job().json()["estimate"] is None
    assert error_of(ask(service), 503)["code"] == "engine_overloaded"


@pytest.mark.usefixtures("counting")
def test_a_layer_that_the_base_has_not_is_refused_before_the_trainer_sees_it(service):
    error = error_of(ask(service, peft={"type": "lora", "target_modules": ["nowhere"]}))
    assert (error["param"], error["code"]) == ("peft.target_modules", "invalid_value")


@pytest.mark.usefixtures("counting")
def test_what_a_job_took_stands_beside_its_estimate_and_sets_the_pace_of_the_next(service):
    job_id = service.job().json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    blob = open_store(service.settings).put_bytes(b"zip")
    jobs.succeed(
        service.database,
        held,
        adapter=blob,
        peft_type="LORA",
        details={},
        step=1,
        trained_tokens=10,
        measured={"memory_bytes": 123, "tokens_per_s": 500.0},
    )
    job = service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    took = job["measured"]
    assert (took["memory_bytes"], took["tokens_per_s"], took["adapter_bytes"]) == (123, 500.0, 3)
    assert took["seconds"] >= 0
    found = ask(service, hyperparameters={"n_epochs": 1}).json()
    assert found["seconds_basis"] == "jobs"
    assert found["seconds"] == pytest.approx(60_000 / 500, rel=0.1)
    other = ask(service, peft={"type": "prompt_tuning"}).json()
    assert other["seconds_basis"] == "default"
