"""Attempts that have to go: cancelled, paused, drained, superseded, or cut off from the database."""

import time
from types import SimpleNamespace

import pytest
from job_bench import is_running, wait_until
from sqlalchemy.exc import OperationalError

from core.records import jobs
from worker import progress


@pytest.mark.parametrize("faults", [{}, {"deaf": True}], ids=["obedient", "deaf"])
def test_a_cancelled_job_stops_and_leaves_no_adapter(worker, faults, monkeypatch):
    monkeypatch.setattr("worker.supervision.CANCEL_GRACE_S", 0.5)
    bench = worker.bench
    job_id = bench.submit(faults, steps=100_000, step_s=0.05)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.cancel(job_id)
    thread.join(60)
    assert bench.job(job_id).state == "cancelled"
    assert bench.adapters(job_id) == []
    assert bench.strays() == []


def test_a_cancel_that_comes_as_the_job_succeeds_wins(worker, monkeypatch):
    bench = worker.bench
    job_id = bench.submit(steps=3)
    succeed = jobs.succeed

    def cancelled_just_before(*args, **kwargs):
        bench.cancel(job_id)
        return succeed(*args, **kwargs)

    monkeypatch.setattr(jobs, "succeed", cancelled_just_before)
    assert worker.attempt(job_id).state == "cancelled"
    assert bench.adapters(job_id) == []


@pytest.mark.parametrize("is_deaf", [False, True], ids=["obedient", "deaf"])
def test_a_paused_job_frees_the_seat_and_goes_on_where_it_stopped(make_worker, is_deaf):
    worker = make_worker(**({"drain_s": 0.5} if is_deaf else {}))
    bench = worker.bench
    job_id = bench.submit({"stand_at": 10, "deaf": is_deaf}, steps=40, step_s=0.01)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.pause(job_id)
    thread.join(60)
    job = bench.job(job_id)
    assert (job.state, job.attempt, job.preemptions, job.barren_deaths) == ("paused", 0, 0, 0)
    assert worker.rung == []
    assert bench.strays() == []
    assert jobs.claim(bench.db, owner="another", lease_s=60) is None
    bench.resume(job_id)
    if not is_deaf:
        last = max(step for _, step in bench.steps(job_id))
        worker.attempt(job_id)
        bench.assert_finished_once(job_id, steps=40)
        assert [step for epoch, step in bench.steps(job_id) if epoch == 2] == list(range(last + 1, 41))


def test_a_pause_taken_back_too_late_costs_nothing_but_a_turn(worker, monkeypatch):
    bench = worker.bench
    job_id = bench.submit({"stand_at": 10}, steps=40, step_s=0.01)
    drain = jobs.drain

    def resumed_just_before(*args, **kwargs):
        bench.resume(job_id)
        return drain(*args, **kwargs)

    monkeypatch.setattr(jobs, "drain", resumed_just_before)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.pause(job_id)
    thread.join(60)
    assert bench.job(job_id).state == "queued"
    assert worker.rung == [job_id]
    worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=40)


@pytest.mark.parametrize("is_deaf", [False, True], ids=["obedient", "deaf"])
def test_a_worker_that_has_to_go_drains_its_job_and_rings_for_it(make_worker, is_deaf):
    worker = make_worker(**({"drain_s": 0.5} if is_deaf else {}))
    bench = worker.bench
    job_id = bench.submit({"stand_at": 10, "deaf": is_deaf}, steps=40, step_s=0.01)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    worker.shop.closing.set()
    thread.join(60)
    job = bench.job(job_id)
    assert (job.state, job.attempt, job.preemptions) == ("queued", 0, 1)
    assert worker.rung == [job_id]
    worker.shop.closing.clear()
    if not is_deaf:
        last = max(step for _, step in bench.steps(job_id))
        worker.attempt(job_id)
        bench.assert_finished_once(job_id, steps=40)
        assert [step for epoch, step in bench.steps(job_id) if epoch == 2] == list(range(last + 1, 41))


def test_a_superseded_attempt_kills_its_trainer_and_writes_nothing(worker):
    bench = worker.bench
    job_id = bench.submit(steps=100_000, step_s=0.05)
    crew, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.expire(job_id)
    usurper = worker.claim(job_id, owner="usurper")
    thread.join(60)
    assert not is_running(crew._child.pid)
    job = bench.job(job_id)
    assert (job.state, job.lease_owner, job.lease_epoch) == ("running", "usurper", usurper.lease_epoch)
    kinds = [event.kind for event in bench.events(job_id) if event.id > taken_over(bench, job_id)]
    assert set(kinds) <= {"fenced"}
    assert worker.rung == []


def taken_over(bench, job_id):
    return next(event.id for event in bench.events(job_id) if event.kind == "claimed" and event.lease_epoch == 2)


def test_a_worker_cut_off_from_the_database_stops_before_its_lease_is_over(worker, monkeypatch):
    bench = worker.bench
    passed_s = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s))
    job_id = bench.submit(steps=100_000, step_s=0.05)
    crew, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)

    def away(*_, **__):
        raise OperationalError("UPDATE", {}, Exception("gone"))

    for name in ("beat", "record", "drain", "requeue"):
        monkeypatch.setattr(jobs, name, away)
    assert is_running(crew._child.pid)
    passed_s = 0.8 * bench.settings.lease_s
    wait_until(lambda: not is_running(crew._child.pid))
    thread.join(60)
    assert bench.job(job_id).state == "running"
