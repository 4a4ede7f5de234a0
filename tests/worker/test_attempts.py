"""Whole attempts in this process, with a real child, a real database and a real store."""

import pytest
from sqlalchemy.exc import OperationalError

from core.records import jobs
from core.specs.rate_search import search_around


def test_a_job_is_trained_published_and_marked(worker):
    bench = worker.bench
    job_id = bench.submit(steps=12, eval_steps=4, is_validated=True)
    job = worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=12)
    assert (job.step, job.total_steps, job.trained_tokens, job.attempt) == (12, 12, 120, 1)
    (adapter,) = bench.adapters(job_id)
    assert adapter.peft_type == "LORA"
    assert adapter.details["metrics"] == {"train_loss": pytest.approx(0.5, abs=0.5)}
    checkpoints = bench.checkpoints(job_id)
    assert [row.step for row in checkpoints] == [5, 10]
    assert [row.model_name for row in checkpoints] == [f"{adapter.name}:ckpt-step-{step}" for step in (5, 10)]
    assert worker.rung == []


def test_every_step_is_a_metrics_event_with_openais_names(worker):
    bench = worker.bench
    job_id = bench.submit(steps=4, eval_steps=2, is_validated=True)
    worker.attempt(job_id)
    first, second, validated, *_ = [event for event in bench.events(job_id) if event.type == "metrics"]
    names = {"step", "total_steps", "train_loss", "train_mean_token_accuracy", "valid_loss"}
    names |= {"valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy"}
    assert set(first.event_data) == names | {"learning_rate", "grad_norm", "tokens_per_s", "gpu_mem_bytes"}
    assert first.message == f"Step 1/4: training loss={first.event_data['train_loss']:.3f}"
    assert first.event_data["valid_loss"] is None
    assert validated.event_data["train_loss"] == second.event_data["train_loss"]
    assert validated.event_data["full_valid_loss"] == validated.event_data["valid_loss"]
    assert validated.step == second.step == 2


def test_the_result_file_tells_every_step(worker):
    job_id = worker.bench.submit(steps=6, eval_steps=3, is_validated=True)
    worker.attempt(job_id)
    file, text = worker.bench.result_file(job_id)
    assert file.purpose == "fine-tune-results"
    header, *rows = text.splitlines()
    assert header.split(",")[:3] == ["step", "train_loss", "train_accuracy"]
    assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, 7)]
    assert [bool(row.split(",")[3]) for row in rows] == [False, False, True, False, False, True]


def test_only_the_newest_two_states_stay_in_the_store(worker):
    bench = worker.bench
    job_id = bench.submit(steps=23, n_checkpoints=2)
    worker.attempt(job_id)
    rows = bench.checkpoints(job_id)
    assert [row.step for row in rows if row.state_sha256] == [15, 20]
    assert [row.step for row in rows if row.model_name] == [15, 20]
    blobs = [path for path in (bench.folder / "blobs" / "blobs").glob("*/*") if b"state.json" in path.read_bytes()]
    assert len(blobs) == 2


def test_a_dead_trainer_is_tried_again_and_goes_on_from_its_checkpoint(worker, monkeypatch):
    bench = worker.bench
    monkeypatch.setenv("GRAFT_TEST", "1")
    monkeypatch.setenv("GRAFT_CRASH_AT", "step:7")
    job_id = bench.submit(steps=12)
    job = worker.attempt(job_id)
    assert (job.state, job.attempt, job.barren_deaths) == ("queued", 1, 0)
    assert job.run_after > 0
    assert worker.attempts(job_id).attempt == 2
    bench.assert_finished_once(job_id, steps=12)
    assert [step for epoch, step in bench.steps(job_id) if epoch == 2] == list(range(6, 13))


def test_what_a_trainer_started_dies_with_it(worker):
    worker.bench.assert_finished_once(worker.attempt_new({"grandchild": True}, steps=3), steps=3)


def test_a_database_that_is_away_for_a_moment_costs_nothing(worker, monkeypatch):
    bench = worker.bench
    job_id = bench.submit(steps=8)
    failures = iter([True, True, False])
    succeed = jobs.succeed

    def away_at_first(*args, **kwargs):
        if next(failures):
            raise OperationalError("UPDATE", {}, Exception("gone"))
        return succeed(*args, **kwargs)

    monkeypatch.setattr(jobs, "succeed", away_at_first)
    worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=8)


def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_run(worker, monkeypatch):
    bench = worker.bench
    put, is_full = bench.blobs.put, iter([True])

    def full_at_first(path):
        if next(is_full, False):
            raise OSError(28, "No space left on device")
        return put(path)

    monkeypatch.setattr(bench.blobs, "put", full_at_first)
    job_id = worker.attempt_new({}, steps=12)
    bench.assert_finished_once(job_id, steps=12)
    assert [row.step for row in bench.checkpoints(job_id)] == [10]
    assert "checkpoint_unpublished" in bench.kinds(job_id)


def test_an_adapter_that_cannot_be_stored_is_tried_again_later(worker, monkeypatch):
    bench = worker.bench
    put, is_full = bench.blobs.put, iter([True])

    def full_for_the_adapter(path):
        if path.name == "final.zip" and next(is_full, False):
            raise OSError(28, "No space left on device")
        return put(path)

    monkeypatch.setattr(bench.blobs, "put", full_for_the_adapter)
    job_id = bench.submit(steps=4)
    job = worker.attempt(job_id)
    assert (job.state, job.barren_deaths) == ("queued", 0)
    assert worker.attempts(job_id).state == "succeeded"
    bench.assert_finished_once(job_id, steps=4)


@pytest.mark.parametrize("how", ["newest damaged", "newest gone", "all damaged"])
def test_damaged_checkpoints_are_done_without(worker, monkeypatch, how):
    bench = worker.bench
    monkeypatch.setenv("GRAFT_TEST", "1")
    monkeypatch.setenv("GRAFT_CRASH_AT", "step:12")
    job_id = worker.attempt_new({}, steps=15)
    older, newest = bench.checkpoints(job_id)
    for row in [older, newest] if how == "all damaged" else [newest]:
        path = bench.folder / "blobs" / "blobs" / row.state_sha256[:2] / row.state_sha256
        path.unlink() if how == "newest gone" else path.write_bytes(path.read_bytes()[:100] + b"x" * 64)
    worker.attempts(job_id)
    first = min(step for epoch, step in bench.steps(job_id) if epoch == 2)
    assert first == (1 if how == "all damaged" else 6)
    assert "checkpoint_unusable" in bench.kinds(job_id)
    bench.assert_finished_once(job_id, steps=15)


def test_a_rate_that_the_trainer_found_is_in_the_row_and_in_an_event(worker):
    search = search_around(8e-3, steps=5, batch_size=1)
    job_id = worker.bench.submit(rate_search=search.model_dump(mode="json"), learning_rate=8e-3)
    job = worker.attempt(job_id)
    assert (job.state, job.spec["learning_rate"]) == ("succeeded", 1e-3)
    assert job.spec["rate_search"]["found"]["candidates"][0] == {"rate": 1e-3, "losses": [1.0]}
    (told,) = [event for event in worker.bench.events(job_id) if event.kind == "rate_found"]
    data = told.event_data
    assert (data["rate"], data["share"], data["seconds"]) == (1e-3, 0.5, 0.25)
