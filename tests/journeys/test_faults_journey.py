"""Processes are killed in mid-training; each job still finishes, once, with one adapter."""

import os
import signal

import pytest
from one_machine import colours, finish, until, upload, wait_for_step

pytestmark = [pytest.mark.journey, pytest.mark.xdist_group("faults")]
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


def assert_finished_once(client, job, suffix):
    done = finish(client, job.id)
    assert done.status == "succeeded", done.error
    metrics, after = [], None
    while True:
        page = client.fine_tuning.jobs.list_events(job.id, limit=100, **({"after": after} if after else {}))
        metrics += [event for event in page.data if event.type == "metrics"]
        if not page.has_more:
            break
        after = page.data[-1].id
    steps = {event.data["step"] for event in metrics if "train_loss" in event.data}
    assert steps == set(range(1, STEPS + 1))
    made = [model.id for model in client.models.list().data if model.id.startswith("ft:") and suffix in model.id]
    assert [name for name in made if ":ckpt-step-" not in name] == [done.fine_tuned_model]
    reply = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "item 1"}], max_tokens=4
    )
    assert reply.usage.completion_tokens >= 1


def test_a_job_survives_the_kill_of_its_trainer_child(service):
    client = service.client()
    job = begin(client, "child")
    os.kill(service.member("worker.trainer_process"), signal.SIGKILL)
    assert_finished_once(client, job, "child")


def test_a_job_survives_the_kill_of_its_worker(service):
    client = service.client()
    job = begin(client, "worker")
    child, worker = service.member("worker.trainer_process"), service.member("worker.celery_app")
    os.kill(worker, signal.SIGKILL)
    until(lambda: child not in service.members(), 3.0, "the child's death with its worker")
    assert_finished_once(client, job, "worker")


def test_a_job_survives_a_restart_of_everything(service):
    client = service.client()
    job = begin(client, "restart")
    service.stop()
    service.start()
    assert client.fine_tuning.jobs.retrieve(job.id).status in {"queued", "running"}
    assert_finished_once(client, job, "restart")


def test_a_job_survives_the_kill_of_the_launcher_which_takes_all_with_it(service):
    client = service.client()
    job = begin(client, "launcher")
    service.kill()
    service.assert_nothing_left()
    service.start()
    assert_finished_once(client, job, "launcher")
    service.stop()
