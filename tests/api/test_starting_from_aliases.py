"""Jobs that start from an alias which means a checkpoint: of its bytes, and of them still when the alias has moved."""

import pytest
from serving import peft_zip

from core.blobs import open_store
from core.records import jobs
from core.records.tables import Job

KINDS = {
    "continue_from": ({"type": "lora", "r": 4}, "LORA"),
    "init_adapter": ({"type": "prompt_tuning", "num_virtual_tokens": 4}, "PROMPT_TUNING"),
}


@pytest.fixture(params=KINDS)
def field(request):
    return request.param


@pytest.fixture
def made(service, field):
    """The model of a job with the suffix bot, and by step the digests of what it and its checkpoints are of."""
    peft, kind = KINDS[field]
    job_id = service.job(suffix="bot", peft=peft).json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    store = open_store(service.settings)
    blobs = {step: store.put_bytes(peft_zip(f"step {step}")) for step in (1, 2, "served")}
    for step in (1, 2):
        jobs.record_checkpoint(service.database, held, step=step, metrics={}, adapter=blobs[step])
    told = {"peft_type": kind, "details": {"parameters": 9, "base_precision": "bf16"}, "step": 2, "trained_tokens": 4}
    name = jobs.succeed(service.database, held, adapter=blobs["served"], **told).name
    return name, {step: blob.sha256 for step, blob in blobs.items()}


def start(service, field, name):
    """A job that goes on from a model, or whose prompt starts from it, and its spec."""
    if field == "continue_from":
        answer = service.job(continue_from=name)
    else:
        answer = service.job(peft={"type": "prompt_tuning", "prompt_tuning_init": "adapter", "init_adapter": name})
    assert answer.status_code == 200, answer.text
    with service.database.session() as session:
        return answer.json(), session.get_one(Job, answer.json()["id"]).spec


def source(spec, field):
    named = spec if field == "continue_from" else spec["method"]
    return named[field], spec[f"{field}_sha256"]


def promote(service, name, alias="production"):
    assert service.http.post(f"/v1/adapters/{name}/aliases/{alias}").status_code == 200


def test_it_starts_from_the_checkpoint_that_the_alias_means_and_from_no_other(service, field, made):
    name, digests = made
    promote(service, f"{name}:ckpt-step-1")
    answer, spec = start(service, field, "bot@production")
    assert source(spec, field) == (f"{name}:ckpt-step-1", digests[1])
    assert answer["continue_from"] == (spec["continue_from"] if field == "continue_from" else None)
    assert source(start(service, field, f"{name}:ckpt-step-2")[1], field) == (f"{name}:ckpt-step-2", digests[2])
    # What the version serves is another thing, and so is the alias once it means that.
    promote(service, name)
    assert source(start(service, field, "bot@production")[1], field) == (name, digests["served"])


def test_it_is_tried_again_and_its_lineage_told_as_it_was_when_the_alias_has_moved(service, field, made):
    name, digests = made
    promote(service, f"{name}:ckpt-step-1")
    job, spec = start(service, field, "bot@production")
    promote(service, f"{name}:ckpt-step-2")
    assert service.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").status_code == 200
    again = service.http.post(f"/v1/fine_tuning/jobs/{job['id']}/retry")
    assert again.status_code == 200, again.text
    with service.database.session() as session:
        tried = session.get_one(Job, again.json()["id"]).spec
    assert source(tried, field) == source(spec, field) == (f"{name}:ckpt-step-1", digests[1])
    found = service.http.get(f"/v1/adapters/{name}/lineage").json()
    bond = {"continue_from": "continued_from", "init_adapter": "started_from"}[field]
    tied = {edge["source"] for edge in found["edges"] if edge["target"] == job["id"] and edge["bond"] == bond}
    kinds = {node["id"]: (node["kind"], node["name"]) for node in found["nodes"]}
    assert [kinds[one] for one in tied] == [("checkpoint", f"{name}:ckpt-step-1")]


def test_an_alias_of_a_checkpoint_of_another_s_project_is_as_if_it_were_not_there(service, field, made):
    promote(service, f"{made[0]}:ckpt-step-1")
    stranger = service.stranger()
    lines = {"file": ("t.jsonl", '{"prompt": "a", "completion": "b"}\n' * 3)}
    file_id = stranger.post("/v1/files", files=lines, data={"purpose": "fine-tune"}).json()["id"]
    body = {"model": "smollm2-135m-instruct", "training_file": file_id}
    if field == "continue_from":
        body["continue_from"] = "bot@production"
    else:
        body["peft"] = {"type": "prompt_tuning", "prompt_tuning_init": "adapter", "init_adapter": "bot@production"}
    answer = stranger.post("/v1/fine_tuning/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["code"].partition("_")[2]) == (
        400,
        "not_found" if field == "continue_from" else "adapter_not_found",
    )
