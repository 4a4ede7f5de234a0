"""A job that rests because its owner says so, and goes on as if it had not."""

import pytest

from core.records import audit, jobs
from core.records.jobs import Asked, Fenced, NotPausable, NotResumable, NotRetryable
from core.records.tables import Job


def test_a_waiting_job_rests_at_once_and_waits_again_at_its_old_place(db, machine, make_job, account):
    first, second = make_job(), make_job()
    assert machine.pause(first).state == "paused"
    assert machine.claim().job_id == second
    assert machine.claim() is None
    assert machine.sweep(most=10) == []
    third = make_job()
    assert machine.resume(first).state == "queued"
    assert [machine.claim().job_id, machine.claim().job_id] == [first, third]
    assert machine.kinds(first) == ["created", "paused", "resumed", "claimed"]
    with db.session() as session:
        said = [entry.action for entry in audit.listed(session, account).rows if entry.target == first]
    assert said == ["job.resumed", "job.paused"]


def test_a_running_job_is_asked_and_rests_when_its_worker_lets_it_go(db, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    assert machine.beat(held, step=4) is Asked.NOTHING
    assert machine.pause(job_id).state == "running"
    asked_at = machine.job(job_id).pause_requested_at
    assert machine.pause(job_id).pause_requested_at == asked_at
    assert machine.beat(held, step=5) is Asked.TO_PAUSE
    assert jobs.drain(db, held) == "paused"
    job = machine.job(job_id)
    assert (job.state, job.attempt, job.preemptions, job.lease_owner) == ("paused", 0, 0, None)
    assert job.pause_requested_at is None
    with pytest.raises(Fenced):
        machine.beat(held)
    machine.resume(job_id)
    again = machine.claim()
    assert (again.job_id, again.attempt, again.lease_epoch) == (job_id, 1, 2)
    assert machine.beat(again) is Asked.NOTHING


def test_a_wish_to_rest_can_be_taken_back(db, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    machine.pause(job_id)
    assert machine.resume(job_id).state == "running"
    assert machine.beat(held) is Asked.NOTHING
    assert jobs.drain(db, held) == "queued", "its worker had begun to let it go"


def test_a_job_whose_worker_is_lost_rests_as_it_was_asked_to(machine, make_job):
    job_id = make_job()
    machine.beat(machine.claim(), step=1)
    machine.pause(job_id)
    machine.expire(job_id)
    assert machine.claim() is None
    machine.sweep()
    job = machine.job(job_id)
    assert (job.state, job.attempt, job.barren_deaths) == ("paused", 1, 0)


def test_a_death_while_it_is_asked_to_rest_counts_as_one(machine, make_job):
    job_id = make_job(max_attempts=2)
    held = machine.claim()
    machine.pause(job_id)
    assert machine.requeue(held) == "paused"
    assert machine.job(job_id).barren_deaths == 1
    machine.resume(job_id)
    held = machine.claim()
    machine.pause(job_id)
    assert machine.requeue(held) == "failed"
    assert machine.job(job_id).error_code == "poison"


def test_success_and_failure_come_before_a_pause_and_cancelling_too(machine, make_job, db):
    done, broken, unwanted = make_job(), make_job(), make_job()
    held = [machine.claim() for _ in range(3)]
    for job_id in (done, broken, unwanted):
        machine.pause(job_id)
    machine.succeed(held[0])
    jobs.fail(db, held[1], code="x", message="y")
    machine.cancel(unwanted)
    assert machine.beat(held[2]) is Asked.TO_CANCEL
    assert jobs.drain(db, held[2]) == "cancelled"
    assert [machine.job(job_id).state for job_id in (done, broken, unwanted)] == ["succeeded", "failed", "cancelled"]


def test_a_resting_job_can_be_cancelled(machine, make_job):
    job_id = make_job()
    machine.pause(job_id)
    assert machine.cancel(job_id).state == "cancelled"


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_what_has_ended_neither_rests_nor_resumes(machine, make_job, state):
    job_id = make_job()
    machine.set(job_id, state=state)
    with pytest.raises(NotPausable, match=state):
        machine.pause(job_id)
    with pytest.raises(NotResumable, match="retry"):
        machine.resume(job_id)


def test_what_is_being_cancelled_cannot_rest_and_what_does_not_rest_cannot_resume(machine, make_job):
    job_id = make_job()
    with pytest.raises(NotResumable, match="does not rest"):
        machine.resume(job_id)
    machine.claim()
    machine.cancel(job_id)
    with pytest.raises(NotPausable, match="cancelled"):
        machine.pause(job_id)


def test_strangers_pause_resume_and_retry_nothing(db, machine, make_job, make_account):
    job_id, stranger = make_job(), make_account("stranger")
    with db.writing() as session:
        assert jobs.pause(session, stranger, job_id) is None
        assert jobs.resume(session, stranger, job_id) is None
    job = machine.cancel(job_id)
    with db.writing() as session, pytest.raises(LookupError):
        jobs.retry(session, stranger, job, max_attempts=3)


def test_a_retry_is_the_same_run_and_says_of_whom(db, account, machine, make_job):
    job_id = make_job(suffix="bot", metadata={"k": "v"})
    with db.writing() as session, pytest.raises(NotRetryable, match="queued"):
        jobs.retry(session, account, machine.job(job_id), max_attempts=3)
    machine.cancel(job_id)
    with db.writing() as session:
        again = jobs.retry(session, account, machine.job(job_id), max_attempts=5)
    first = machine.job(job_id)
    same = ("spec", "request", "seed", "suffix", "job_metadata", "training_file_id", "validation_file_id", "base_model")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
    assert (again.retry_of, again.state, again.attempt, again.max_attempts) == (job_id, "queued", 0, 5)
    assert machine.kinds(again.id) == ["created", "retry"]
    assert machine.claim().job_id == again.id
    with db.session() as session:
        assert session.query(Job).count() == 2
