"""Processes are killed in mid-training; each job still finishes, once, with one adapter."""

import os
import signal
import sqlite3
from unittest.mock import ANY

import pytest
from one_machine import colours, finish, until, upload, wait_for_step

pytestmark = pytest.mark.journey
STEPS = 300  # enough that a kill after step 5 is in mid-training


@pytest.fixture(scope="module")
def service(make_service):
    service = make_service()
    service.start()
    return service


def begin(client, suffix):
    """A job of STEPS steps that has come past its first checkpoint."""
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, colours(24)),
        suffix=suffix,
        hyperparameters={"n_epochs": 50, "batch_size": 4},
        extra_body={"peft": {"type": "lora", "r": 2}, "training": {"learning_rate": 0.001, "n_checkpoints": 1}},
    )
    wait_for_step(client, job.id, 6)
    return job


def assert_finished_once(service, client, job):
    """It succeeded, in two attempts of which the second went on from a checkpoint, with one adapter that answers."""
    done = finish(client, job.id)
    assert done.status == "succeeded", done.error
    with sqlite3.connect(f"file:{service.data_dir / 'graft.db'}?mode=ro", uri=True) as database:
        steps = database.execute(
            "select lease_epoch, min(step), max(step), count(*), count(distinct step) from job_events"
            " where job_id = ? and kind = 'step' group by lease_epoch order by lease_epoch",
            (job.id,),
        ).fetchall()
        adapters = database.execute("select name from adapters where job_id = ?", (job.id,)).fetchall()
        ends = database.execute(
            "select lease_epoch from job_events where job_id = ? and kind = 'succeeded'", (job.id,)
        ).fetchall()
    assert [(epoch, first, last) for epoch, first, last, *_ in steps] == [(1, 1, ANY), (2, ANY, STEPS)]
    (_, _, reached, *_), (_, resumed, *_) = steps
    assert 1 < resumed <= reached + 1
    assert all(count == distinct == last - first + 1 for _, first, last, count, distinct in steps)
    assert adapters == [(done.fine_tuned_model,)]
    assert ends == [(2,)]
    reply = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "item 1"}], max_tokens=4
    )
    assert reply.usage.completion_tokens >= 1


def test_a_job_survives_the_kill_of_its_trainer_child(service):
    client = service.client()
    job = begin(client, "child")
    os.kill(service.member("worker.trainer_process"), signal.SIGKILL)
    assert_finished_once(service, client, job)


def test_a_job_survives_the_kill_of_its_worker(service):
    client = service.client()
    job = begin(client, "worker")
    child, worker = service.member("worker.trainer_process"), service.member("worker.celery_app")
    os.kill(worker, signal.SIGKILL)
    until(lambda: child not in service.members(), 3.0, "the child's death with its worker")
    assert_finished_once(service, client, job)


def test_a_job_survives_a_restart_of_everything(service):
    client = service.client()
    job = begin(client, "restart")
    service.stop()
    service.start()
    assert client.fine_tuning.jobs.retrieve(job.id).status in {"queued", "running"}
    assert_finished_once(service, client, job)


def test_a_job_survives_the_kill_of_the_launcher_which_takes_all_with_it(service):
    client = service.client()
    job = begin(client, "launcher")
    service.kill()
    service.assert_nothing_left()
    service.start()
    assert_finished_once(service, client, job)
    service.stop()
