"""Which jobs trained in step: one trainer, one base in one precision, times that overlap."""

import pytest

from core.records import jobs
from core.records.company import companies
from core.records.tables import Job, JobEvent


@pytest.fixture
def sorted_out(db):
    def ask(*job_ids):
        with db.session() as session:
            rows = [session.get_one(Job, job_id) for job_id in job_ids]
            return [[row.id for row in group] for group in companies(session, rows)]

    return ask


@pytest.fixture
def take(db, make_job):
    """A job that a trainer takes."""

    def claimed(owner="one"):
        job_id = make_job()
        return job_id, jobs.claim(db, owner=owner, lease_s=600, job_id=job_id)

    return claimed


def test_jobs_that_one_trainer_held_at_once_were_in_step_and_afterwards_too(take, machine, sorted_out):
    (first, held), (second, _), (other, _) = take(), take(), take("another")
    assert sorted_out(first, other, second) == [[first, second], [other]]
    machine.succeed(held, "f")
    assert sorted_out(second, first) == [[second, first]]


def test_one_job_after_another_is_no_company(take, machine, sorted_out):
    first, held = take()
    machine.succeed(held, "f")
    second, _ = take()
    assert sorted_out(first, second) == [[first], [second]]


def test_who_meets_two_that_never_met_joins_them(take, machine, sorted_out):
    first, held = take()
    middle, _ = take()
    machine.succeed(held, "f")
    last, _ = take()
    assert sorted_out(first, last, middle) == [[first, last, middle]]


def test_claims_that_name_no_trainer_say_nothing(take, db, sorted_out):
    first, second = take()[0], take()[0]
    with db.writing() as session:
        session.query(JobEvent).filter_by(kind="claimed").update({"event_data": {"attempt": 1}})
    assert sorted_out(first, second) == [[first], [second]]


def test_a_trainer_s_name_in_events_tells_nothing_of_its_machine(take, db, account):
    job_id, _ = take("host-17:4711")
    with db.session() as session:
        claimed = next(one for one in jobs.events(session, account, job_id).rows if one.kind == "claimed")
    assert len(claimed.event_data["trainer"]) == 12
    assert "host" not in str(claimed.event_data)
