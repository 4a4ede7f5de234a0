"""Attempts that come to nothing: by the user's fault, for want of memory or of a file, or in a trainer that dies."""

import json

from sqlalchemy import select

from core.records.tables import File


def test_a_users_error_ends_the_job_with_all_that_the_trainer_said(worker):
    job = worker.attempt(worker.bench.submit({"user_error": True}))
    assert (job.state, job.error_code, job.error_param) == ("failed", "row_too_long", "training_file")
    assert job.error_details == [{"line": 3, "tokens": 99, "limit": 64}]
    assert job.attempt == 1


def test_a_loss_that_is_no_number_fails_the_job_and_keeps_its_checkpoints(worker):
    job_id = worker.bench.submit({"not_finite_at": 7}, steps=12)
    job = worker.attempt(job_id)
    assert (job.state, job.error_code) == ("failed", "diverged")
    assert [row.step for row in worker.bench.checkpoints(job_id)] == [5]


def test_out_of_memory_goes_on_with_smaller_batches_and_costs_no_attempt(worker):
    bench = worker.bench
    job_id = bench.submit({"needs_tokens_at_most": 512}, steps=6)
    job = worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=6)
    assert job.attempt == 1
    said = [event.event_data for event in bench.events(job_id) if event.kind == "out_of_memory"]
    assert said == [{"tokens_per_batch": 1024}, {"tokens_per_batch": 512}]


def test_a_later_attempt_begins_with_what_memory_was_enough_for(worker):
    bench = worker.bench
    job_id = bench.submit({"needs_tokens_at_most": 512, "die_at": 8}, steps=12)
    worker.attempt(job_id)
    worker.attempt(job_id)
    assert bench.kinds(job_id).count("out_of_memory") == 2


def test_out_of_memory_at_the_floor_fails_the_job(worker):
    job = worker.attempt(worker.bench.submit({"needs_tokens_at_most": 8}, tokens_per_batch=128))
    assert (job.state, job.error_code) == ("failed", "out_of_memory")


def test_a_job_that_kills_its_trainer_at_once_is_poison(worker):
    job = worker.attempts(worker.bench.submit({"die_at": 1}, max_attempts=10))
    assert (job.state, job.error_code, job.attempt) == ("failed", "poison", 2)


def test_a_trainer_that_hangs_is_killed_and_tried_again(make_worker):
    worker = make_worker(stall_s=0.5)
    job_id = worker.bench.submit({"hang_at": 3}, steps=6, max_attempts=1)
    job = worker.attempt(job_id)
    assert (job.state, job.error_code) == ("failed", "attempts_exhausted")
    assert "no progress" in job.error_message


def test_a_training_file_whose_bytes_are_gone_fails_the_job(worker):
    bench = worker.bench
    job_id = bench.submit({"die_at": 77})
    bench.blobs.delete(training_blob(bench))
    job = worker.attempt(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "file_missing", "training_file")
    bench.blobs.put_bytes(json.dumps({"die_at": 77}).encode() + b"\n")


def test_an_adapter_to_start_from_whose_bytes_are_gone_fails_the_job(worker):
    job = worker.attempt(worker.bench.submit(init_adapter_sha256="a" * 64))
    assert (job.state, job.error_code, job.error_param) == ("failed", "init_adapter_missing", "peft.init_adapter")


def training_blob(bench):
    with bench.db.session() as session:
        return session.scalars(select(File.blob_sha256)).one()


def test_a_base_model_that_is_offered_no_more_fails_the_job(worker):
    job = worker.attempt(worker.bench.submit(base_model="forgotten"))
    assert (job.state, job.error_code, job.error_param) == ("failed", "base_model_unavailable", "model")
