"""A real worker that an administrator drains: its job goes on at another, and bells are left to others."""

from job_bench import wait_until

from core.bell import celery_app
from core.records.workers import ask_to_drain


def drain(service):
    (trainer,) = service.trainers()
    with service.db.writing() as session:
        assert ask_to_drain(session, service.account, trainer.id)
    wait_until(lambda: not service.trainers()[0].is_ready, what="a worker that takes no more")
    return trainer.id


def test_a_drained_worker_s_job_goes_on_at_another_and_the_bell_is_the_other_s(service):
    drained = service.start_worker()
    job_id = service.submit({"stand_at": 12}, steps=60, step_s=0.01)
    service.bell.ring(job_id)
    service.wait_for_step(job_id, 2)
    drain(service)
    service.wait_for(job_id, "queued")
    wait_until(lambda: _hears_nothing(service), what="a worker that hears no bell")
    later = service.submit(steps=2, seed=1)
    service.bell.ring(later)
    assert service.redis().llen("graft:train") > 0
    assert service.job(later).state == "queued"
    service.start_worker()
    service.wait_for_end(later)
    service.wait_for_end(job_id)
    service.assert_finished_once(job_id, steps=60)
    service.assert_finished_once(later, steps=2, seed=1)
    assert drained.process.poll() is None, "it stays until it is stopped"


def _hears_nothing(service):
    told = celery_app(service.settings).control.inspect(timeout=2).active_queues()
    return told and not any(told.values())
