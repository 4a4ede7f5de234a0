"""Processes are killed, stopped and told to go. Each job still ends once, with the bytes of an uninterrupted run."""

import os
import signal

import pytest
from job_bench import is_running, wait_until


def test_a_trainer_killed_in_mid_step_is_started_again_at_its_checkpoint(service):
    service.start_worker(GRAFT_TEST="1", GRAFT_CRASH_AT="step:7")
    service.start_sweeper()
    job_id = service.submit(steps=12)
    service.bell.ring(job_id)
    assert service.wait_for_end(job_id).attempt == 2
    service.assert_finished_once(job_id, steps=12)
    assert [step for epoch, step in service.steps(job_id) if epoch == 2] == list(range(6, 13))


def test_when_a_worker_is_killed_its_trainer_dies_and_another_worker_goes_on(service):
    service.start_worker()
    service.start_worker()
    service.start_sweeper()
    job_id = service.submit({"stand_at": 15}, steps=60, step_s=0.01)
    service.bell.ring(job_id)
    service.wait_for_step(job_id, 12)
    holder = service.holder(job_id)
    child = holder.child()
    os.killpg(holder.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(child), what="the orphan's death")
    holder.wait()
    service.expire(job_id)
    job = service.wait_for_end(job_id)
    assert (job.lease_epoch, job.attempt) == (2, 2)
    service.assert_finished_once(job_id, steps=60)
    assert min(step for epoch, step in service.steps(job_id) if epoch == 2) > 10


def test_a_stopped_worker_that_wakes_after_its_lease_is_fenced(service):
    service.start_worker()
    service.start_worker()
    service.start_sweeper()
    job_id = service.submit({"stand_at": 15}, steps=60, step_s=0.01)
    service.bell.ring(job_id)
    service.wait_for_step(job_id, 12)
    zombie = service.holder(job_id)
    child = zombie.child()
    with service.db.writing():  # so that it is not stopped with SQLite's one lock in its hands, which nobody could take
        zombie.stop()
    service.expire(job_id)
    service.wait_for_end(job_id)
    zombie.send(signal.SIGCONT)
    wait_until(lambda: not is_running(child), what="the end of the zombie's trainer")
    service.assert_finished_once(job_id, steps=60)
    last_words = service.kinds(job_id)[service.kinds(job_id).index("succeeded") + 1 :]
    assert set(last_words) <= {"fenced"}
    # It is none the worse for it.
    wait_until(lambda: len(service.trainers()) == 2, what="two trainers that live")
    next(worker for worker in service.workers if worker is not zombie).kill()
    next_id = service.submit(steps=3)
    service.bell.ring(next_id)
    service.wait_for_end(next_id)
    service.assert_finished_once(next_id, steps=3)
    assert zombie.process.poll() is None


def test_a_worker_told_to_go_leaves_a_checkpoint_and_a_bell(service):
    first = service.start_worker()
    job_id = service.submit({"stand_at": 12}, steps=100, step_s=0.01)
    service.bell.ring(job_id)
    service.wait_for_step(job_id, 7)
    first.send(signal.SIGTERM)
    assert first.wait(within=120) == 0
    job = service.job(job_id)
    assert (job.state, job.attempt, job.preemptions) == ("queued", 0, 1)
    assert service.trainers() == []
    assert service.redis().llen("graft:train") == 1
    service.start_worker()
    service.wait_for_end(job_id)
    service.assert_finished_once(job_id, steps=100)
    steps = [step for _, step in service.steps(job_id)]
    assert steps == list(range(1, 101)), "a drained job repeats nothing"


def test_an_idle_worker_told_to_go_goes_at_once(service):
    worker = service.start_worker()
    wait_until(service.trainers, what="a trainer that says it lives")
    worker.send(signal.SIGTERM)
    assert worker.wait(within=120) == 0
    assert service.trainers() == []


@pytest.mark.parametrize(("point", "attempts"), [("adapter_stored", 2), ("checkpoint_stored", 2), ("succeeded", 1)])
def test_a_worker_killed_between_the_store_and_the_records_leaves_one_adapter(service, point, attempts):
    worker = service.start_worker(GRAFT_TEST="1", GRAFT_CRASH_AT=point)
    job_id = service.submit(steps=7)
    service.bell.ring(job_id)
    assert worker.wait() == -signal.SIGKILL
    service.expire(job_id)
    service.start_worker()
    job = service.wait_for_end(job_id)
    assert job.attempt == attempts
    service.assert_finished_once(job_id, steps=7)


def test_a_cancelled_job_frees_its_worker_for_the_next(service):
    worker = service.start_worker()
    job_id = service.submit(steps=100_000, step_s=0.05)
    service.bell.ring(job_id)
    service.wait_for_step(job_id, 2)
    child = worker.child()
    service.cancel(job_id)
    assert service.wait_for_end(job_id).state == "cancelled"
    assert not is_running(child)
    assert service.adapters(job_id) == []
    next_id = service.submit(steps=3)
    service.bell.ring(next_id)
    service.wait_for_end(next_id)
    service.assert_finished_once(next_id, steps=3)


def test_a_users_error_reaches_the_job_as_the_trainer_said_it(service):
    service.start_worker()
    job_id = service.submit({"user_error": True})
    service.bell.ring(job_id)
    job = service.wait_for_end(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "row_too_long", "training_file")
    assert job.error_details == [{"line": 3, "tokens": 99, "limit": 64}]


def two_in_step(service):
    """Two jobs that one worker trains together, some way on."""
    ids = [service.submit({"stand_at": 12}, steps=60, step_s=0.01, seed=seed) for seed in range(2)]
    for job_id in ids:
        service.bell.ring(job_id)
    for job_id in ids:
        service.wait_for_step(job_id, 7)
    return ids


def assert_both_finished(service, ids):
    for seed, job_id in enumerate(ids):
        assert service.wait_for_end(job_id).attempt == 2
        service.assert_finished_once(job_id, steps=60, seed=seed)
        assert min(step for epoch, step in service.steps(job_id) if epoch == 2) > 1


def test_a_trainer_of_two_jobs_killed_is_started_again_for_both(make_service):
    service = make_service(jobs_in_step=2)
    worker = service.start_worker()
    service.start_sweeper()
    ids = two_in_step(service)
    assert len(worker.children()) == 1
    os.kill(worker.child(), signal.SIGKILL)
    assert_both_finished(service, ids)


def test_when_the_worker_of_two_jobs_is_killed_another_takes_both(make_service):
    service = make_service(jobs_in_step=2)
    worker = service.start_worker()
    ids = two_in_step(service)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    for job_id in ids:
        service.expire(job_id)
    service.start_worker()
    service.start_sweeper()
    assert_both_finished(service, ids)
