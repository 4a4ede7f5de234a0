"""Bells are lost, doubled, forged, and the broker dies. The jobs' rows are the truth, so every job still runs once."""

import time

from job_bench import wait_until

from core.bell import QUEUE, TASK, celery_app

NEVER_S = 600.0


def test_bells_doubled_stale_and_forged_change_nothing(service):
    service.start_worker()
    done = service.submit(steps=2)
    service.bell.ring(done)
    service.wait_for_end(done)
    ids = [service.submit(steps=2, seed=seed) for seed in (1, 2)]
    celery = celery_app(service.settings)
    for job_id in (*ids * 3, done, "ftjob-unknown", "../../etc/passwd"):
        service.bell.ring(job_id)
    for args, kwargs in (([{"a": 1}], {}), ([], {}), ([None, 2], {"x": 1}), (["x" * 100_000], {})):
        celery.send_task(TASK, args=args, kwargs=kwargs, queue=QUEUE)
    celery.send_task("graft.unknown", args=[done], queue=QUEUE)
    wait_until(lambda: service.redis().llen("graft:train") == 0, what="an empty queue")
    last = service.submit(steps=2, seed=3)
    service.bell.ring(last)
    service.wait_for_end(last)
    for seed, job_id in enumerate((done, *ids, last)):
        service.assert_finished_once(job_id, steps=2, seed=seed)
        assert service.job(job_id).attempt == 1


def test_what_is_no_message_at_all_costs_a_restart_and_no_job(service):
    """Celery gives up on what is not JSON; whoever can write that to the broker can also delete the queue."""
    worker = service.start_worker()
    job_id = service.submit(steps=40, step_s=0.02)
    service.bell.ring(job_id)
    service.wait_for_step(job_id, 2)
    service.redis().lpush("graft:train", "not json")
    assert worker.wait(within=120) == 1
    service.start_worker()
    service.wait_for_end(job_id)
    service.assert_finished_once(job_id, steps=40)


def test_when_every_bell_is_lost_and_the_broker_dies_the_jobs_run_all_the_same(service):
    service.start_worker()
    service.start_worker()
    service.start_sweeper()
    ids = [service.submit(steps=5, step_s=0.01, seed=seed) for seed in range(6)]
    for job_id in ids:
        service.bell.ring(job_id)
    service.redis().flushall()
    wait_until(lambda: any(service.job(job_id).state == "succeeded" for job_id in ids), what="a first success")
    service.kill_broker()
    ids += [service.submit(steps=5, step_s=0.01, seed=6)]
    assert service.bell.ring(ids[-1]) is False
    for seed, job_id in enumerate(ids):
        service.wait_for_end(job_id)
        service.assert_finished_once(job_id, steps=5, seed=seed)
        assert service.job(job_id).attempt == 1


def test_a_worker_that_never_found_a_broker_works(make_service):
    service = make_service(has_broker=False)
    worker = service.start_worker(is_heard=False)
    wait_until(service.trainers, what="a trainer that says it lives")
    job_id = service.submit(steps=3)
    service.wait_for_end(job_id)
    service.assert_finished_once(job_id, steps=3)
    service.start_broker()
    wait_until(worker.is_ready, what="a worker that found the broker at last")


def test_a_lost_bell_is_made_up_for_by_the_sweeper_alone(make_service):
    service = make_service(poll_s=NEVER_S)
    service.start_worker()
    job_id = service.submit(steps=2)
    service.start_sweeper()
    service.wait_for_end(job_id)
    service.assert_finished_once(job_id, steps=2)


def test_without_sweeper_and_poll_a_lost_bell_leaves_the_job_where_it_is(make_service):
    """The negative control: it is these two that make up for lost bells."""
    service = make_service(poll_s=NEVER_S)
    service.start_worker()
    job_id = service.submit(steps=2)
    for _ in range(20):
        time.sleep(0.1)
        assert service.job(job_id).state == "queued"
    service.bell.ring(job_id)
    service.wait_for_end(job_id)
    service.assert_finished_once(job_id, steps=2)
