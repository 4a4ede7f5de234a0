import time

import pytest
from serving import BASE, CHAT_LINE
from sqlalchemy import select, update

from core.bell import celery_app
from core.records import jobs
from core.records.database import now_s
from core.records.tables import AuditEntry, Job


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


def n_jobs(service):
    return len(service.http.get("/v1/fine_tuning/jobs").json()["data"])


def test_a_job_is_made_with_every_value_in_force(service):
    training, validation = service.upload(CHAT_LINE * 20).json()["id"], service.upload().json()["id"]
    answer = service.job(
        training_file=training, validation_file=validation, suffix="Support Desk", seed=7, metadata={"k": "v"}
    )
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job.pop("id").startswith("ftjob-")
    assert abs(job.pop("created_at") - time.time()) < 5
    hyperparameters = {"n_epochs": 6, "batch_size": 8, "learning_rate_multiplier": 1.0}
    queue = job.pop("queue")
    assert (queue["position"], abs(queue["waits_s"]) < 5) == (1, True)
    assert job == {
        "object": "fine_tuning.job",
        "error": None,
        "fine_tuned_model": None,
        "started_at": None,
        "finished_at": None,
        "hyperparameters": hyperparameters,
        "model": BASE,
        "organization_id": service.account.organization_id,
        "result_files": [],
        "seed": 7,
        "status": "queued",
        "trained_tokens": None,
        "training_file": training,
        "validation_file": validation,
        "estimated_finish": None,
        "integrations": [],
        "metadata": {"k": "v"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "suffix": "Support Desk",
        "phase": None,
        "peft": {
            "type": "lora",
            "base_precision": "bf16",
            "r": 16,
            "lora_alpha": 32.0,
            "lora_dropout": 0.0,
            "target_modules": "all-linear",
            "use_rslora": False,
            "rank_pattern": {},
            "alpha_pattern": {},
            "loraplus_lr_ratio": 1.0,
            "use_dora": False,
            "init_lora_weights": "kaiming",
        },
        "training": {
            "learning_rate": 5e-4,
            "optimizer": "adamw",
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.03,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "neftune_alpha": None,
            "max_seq_length": 2048,
            "tokens_per_batch": 2048,
            "activation_checkpointing": False,
            "activation_offload": False,
            "train_on": "assistant",
            "eval_steps": None,
            "n_checkpoints": 3,
            "eval_samples": 3,
            "early_stopping": None,
            "serve": "best",
            "rate_search": None,
        },
        "step": 0,
        "total_steps": None,
        "attempt": 0,
        "outcome": None,
        "estimate": None,
        "measured": None,
        "continue_from": None,
        "retry_of": None,
        "cancel_requested_at": None,
        "pause_requested_at": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"peft": {"type": "lora", "r": 4}, "hyperparameters": {"n_epochs": 2}},
        {"peft": {"r": 4}, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}, "peft": {"r": 4}}}},
        {"method": {"type": "lora", "lora": {"r": 4, "hyperparameters": {"n_epochs": 2}}}},
        {"method": {"type": "lora"}, "peft": {"r": 4}, "hyperparameters": {"n_epochs": 2, "batch_size": "auto"}},
        {
            "method": {"type": "lora", "lora": {"r": 4, "hyperparameters": {"n_epochs": 2}}},
            "peft": {"type": "lora", "r": 4},
            "hyperparameters": {"n_epochs": 2},
        },
    ],
)
def test_the_method_may_be_written_in_any_of_its_places(service, fields):
    job = service.job(**fields).json()
    assert job["method"]["type"] == "supervised"
    assert job["method"]["supervised"]["hyperparameters"] == job["hyperparameters"]
    assert (job["peft"]["r"], job["hyperparameters"]["n_epochs"]) == (4, 2)


BAD_FIELDS = [
    ({"model": "gpt-9"}, "model", "model_not_found"),
    ({"model": "/etc/passwd"}, "model", "model_not_found"),
    ({"model": 3}, "model", "invalid_value"),
    ({"training_file": "file-nowhere"}, "training_file", "file_not_found"),
    ({"validation_file": "file-nowhere"}, "validation_file", "file_not_found"),
    ({"suffix": "x" * 65}, "suffix", "invalid_value"),
    ({"suffix": "a/b"}, "suffix", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"seed": 2**31}, "seed", "invalid_value"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "invalid_value"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value"),
    ({"metadata": {"k": 1}}, "metadata.k", "invalid_value"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs", "invalid_value"),
    ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
    ({"hyperparameters": {"epochs": 1}}, "hyperparameters.epochs", "unknown_parameter"),
    (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": 0}}}},
        "method.supervised.hyperparameters.learning_rate_multiplier",
        "invalid_value",
    ),
    ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
    ({"method": {"type": "dpo"}}, "training_file", "unsupported_format"),
    ({"method": {"supervised": {}}}, "method.type", "missing_required_parameter"),
    ({"method": {"type": "supervised", "lora": {"r": 4}}}, "method", "invalid_value"),
    ({"peft": {"type": "magic"}}, "peft.type", "invalid_value"),
    ({"peft": {"r": 0}}, "peft.r", "invalid_value"),
    ({"peft": {"r": 10**9}}, "peft.r", "invalid_value"),
    ({"peft": {"lora_dropout": 1}}, "peft.lora_dropout", "invalid_value"),
    ({"peft": {"target_modules": ["(a+)+$"]}}, "peft.target_modules.0", "invalid_value"),
    ({"peft": {"auto_map": {}}}, "peft.auto_map", "unknown_parameter"),
    ({"training": {"learning_rate": 100}}, "training.learning_rate", "invalid_value"),
    ({"training": {"lr_scheduler": "wild"}}, "training.lr_scheduler", "invalid_value"),
    ({"integrations": [{"type": "wandb"}]}, "integrations", "invalid_value"),
    ({"continue_from": "x"}, "continue_from", "model_not_found"),
    ({"colour": "x"}, "colour", "unknown_parameter"),
    (
        {"peft": {"r": 4}, "method": {"type": "lora", "lora": {"r": 8}}},
        "method.lora",
        "conflicting_parameters",
    ),
    (
        {
            "hyperparameters": {"n_epochs": 1},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        },
        "method.supervised.hyperparameters",
        "conflicting_parameters",
    ),
]


def test_a_bad_field_is_a_400_that_names_it_and_makes_no_job(service):
    for fields, param, code in BAD_FIELDS:
        error = error_of(service.job(**fields))
        assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error"), (fields, error)
    assert n_jobs(service) == 0


def test_several_faults_are_told_together(service):
    error = error_of(service.job(seed=-1, peft={"r": 0}, suffix="/"))
    assert {detail["param"] for detail in error["details"]} == {"seed", "peft.r", "suffix"}


def test_a_file_for_another_purpose_is_refused(service):
    error = error_of(service.job(training_file=service.upload(purpose="user_data").json()["id"]))
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")


def test_rows_longer_than_the_context_are_named_by_line(service, engine):
    engine.too_long = [{"line": 3, "tokens": 700}, {"line": 9, "tokens": 513}]
    error = error_of(service.job())
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
    assert [detail["line"] for detail in error["details"]] == [3, 9]
    assert "700 tokens; at most 512 fit" in error["message"]
    assert engine.measures[0].max_tokens == 512
    assert n_jobs(service) == 0
    engine.too_long = []
    job = service.job(training={"max_seq_length": 100}).json()
    assert job["training"]["max_seq_length"] == 100
    assert engine.measures[-1].max_tokens == 100


def test_a_waiting_job_is_cancelled_once(service):
    job_id = service.job().json()["id"]
    cancelled = service.http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert cancelled.json()["finished_at"]
    again = service.http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    assert error_of(again, 409)["code"] == "job_not_cancellable"
    assert again.headers["x-should-retry"] == "false"
    with service.database.session() as session:
        entries = session.scalars(select(AuditEntry).where(AuditEntry.target == job_id)).all()
    assert [(entry.action, entry.key_id) for entry in entries] == [("job.cancelled", service.account.key_id)]


def test_a_running_job_is_asked_to_stop(service):
    job_id = service.job().json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    answer = service.http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").json()
    assert answer["status"] == "running"
    assert jobs.beat(service.database, held, lease_s=60) is jobs.Asked.TO_CANCEL
    jobs.confirm_cancelled(service.database, held)
    assert service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "cancelled"


def test_a_running_job_says_when_it_may_end(service):
    job_id = service.job().json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    jobs.beat(service.database, held, lease_s=60, step=1, total_steps=5, phase="training")
    with service.database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(started_at=now_s() - 100, progress_at=now_s()))
    job = service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (job["status"], job["phase"], job["step"], job["total_steps"]) == ("running", "training", 1, 5)
    assert job["estimated_finish"] == pytest.approx(time.time() + 400, abs=10)


def test_a_finished_job_names_its_model_and_tells_its_story(service):
    job = service.adapter("Support Desk")
    short = job["id"].removeprefix("ftjob-")[:8]
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", f"ft:{BASE}:acme:support-desk:{short}")
    assert (job["trained_tokens"], job["estimated_finish"]) == (42, None)
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    events = service.http.get(f"{path}/events").json()
    assert [event["kind"] for event in events["data"]] == ["succeeded", "checkpoint", "step", "claimed", "created"]
    step = events["data"][2]
    assert (step["object"], step["type"], step["level"]) == ("fine_tuning.job.event", "metrics", "info")
    assert step["data"] == {"step": 1, "total_steps": 2, "train_loss": 1.5, "train_mean_token_accuracy": 0.5}
    page = service.http.get(f"{path}/events", params={"after": step["id"], "limit": 1}).json()
    assert (page["data"][0]["kind"], page["has_more"]) == ("claimed", True)
    checkpoint = service.http.get(f"{path}/checkpoints").json()["data"][0]
    assert checkpoint.pop("created_at")
    assert checkpoint.pop("id").startswith("ftckpt_")
    assert checkpoint == {
        "object": "fine_tuning.job.checkpoint",
        "fine_tuned_model_checkpoint": f"{job['fine_tuned_model']}:ckpt-step-1",
        "fine_tuning_job_id": job["id"],
        "metrics": {"step": 1, "train_loss": 1.5},
        "step_number": 1,
    }


def test_a_failed_job_says_why(service):
    job_id = service.job().json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    details = [{"line": 4, "field": "", "code": "too_long", "message": "m"}]
    jobs.fail(service.database, held, code="bad_data", message="no", param="training_file", details=details)
    job = service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "bad_data", "message": "no", "param": "training_file", "details": details}


def test_jobs_are_listed_in_pages_and_by_metadata(service):
    ids = [service.job(metadata={"team": f"t{n % 2}", "a.b c": "x"}).json()["id"] for n in range(4)]
    bare = service.job().json()["id"]
    page = service.http.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([bare, ids[3]], True)
    rest = service.http.get("/v1/fine_tuning/jobs", params={"after": ids[3], "limit": 3}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([ids[2], ids[1], ids[0]], False)

    def listed(**query):
        return [job["id"] for job in service.http.get("/v1/fine_tuning/jobs", params=query).json()["data"]]

    assert listed(**{"metadata[team]": "t1"}) == [ids[3], ids[1]]
    assert listed(**{"metadata[team]": "t1", "metadata[a.b c]": "x"}) == [ids[3], ids[1]]
    assert listed(**{"metadata[team]": "t9"}) == []
    assert listed(metadata="null") == [bare]
    assert error_of(service.http.get("/v1/fine_tuning/jobs", params={'metadata[a"]': "x"}))["param"] == "metadata"
    assert error_of(service.http.get("/v1/fine_tuning/jobs", params={"after": "ftjob-no"}))["param"] == "after"
    for cursor in ("x", "ftevent-", "ftevent-²", "ftevent-" + "9" * 30, "ftevent-999999"):
        answer = service.http.get(f"/v1/fine_tuning/jobs/{bare}/events", params={"after": cursor})
        assert error_of(answer)["param"] == "after"


def test_the_bell_is_rung_after_the_commit_and_its_loss_fails_nothing(service, monkeypatch):
    rung = []

    def ring(_self, job_id):
        with service.database.session() as session:
            rung.append(session.get_one(Job, job_id).state)
        return True

    monkeypatch.setattr("api.queue.Queue.ring", ring)
    job_id = service.job().json()["id"]
    deadline = time.monotonic() + 60
    while True:
        with service.database.session() as session:
            if session.get_one(Job, job_id).last_rung_at is not None:
                break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert set(rung) == {"queued"}
    monkeypatch.undo()
    assert service.job().status_code == 200  # nobody listens at the broker's socket
    assert celery_app(service.settings).conf.broker_url.endswith("nobody.sock")


def test_deleting_a_file_leaves_its_job(service):
    file_id = service.upload().json()["id"]
    job_id = service.job(training_file=file_id).json()["id"]
    assert service.http.delete(f"/v1/files/{file_id}").status_code == 200
    assert service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["training_file"] == file_id
    assert service.http.get("/v1/files").json()["data"] == []
