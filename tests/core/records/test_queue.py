"""What waits: places are those at which jobs are taken."""

import pytest

from core.records import queue


@pytest.fixture
def places(db):
    def ask(*ids):
        with db.session() as session:
            return {job_id: place.position for job_id, place in queue.places(session, ids).items()}

    return ask


def test_places_are_the_order_in_which_jobs_are_taken(machine, make_job, make_account, places):
    ids = [make_job(), make_job(make_account("stranger")), make_job(), make_job()]
    found = places(*ids)
    assert found == {job_id: number for number, job_id in enumerate(ids, start=1)}
    taken = [machine.claim().job_id for _ in ids]
    assert taken == sorted(found, key=found.__getitem__)
    assert places(*ids) == {}


def test_who_rests_has_no_place_and_comes_back_to_the_place_of_its_age(machine, make_job, places):
    first, second = make_job(), make_job()
    machine.pause(first)
    assert places(first, second) == {second: 1}
    machine.resume(first)
    assert places(first, second) == {first: 1, second: 2}
    assert places() == {}


def test_a_job_says_how_long_it_could_have_been_taken(db, machine, make_job):
    job_id, later = make_job(), make_job()
    machine.set(job_id, run_after=machine.job(job_id).run_after - 90)
    machine.set(later, run_after=machine.job(later).run_after + 500)
    with db.session() as session:
        found = queue.places(session, [job_id, later])
    assert found[job_id].waits_s == pytest.approx(90, abs=20)
    assert found[later].waits_s == pytest.approx(-500, abs=20)


def test_what_was_given_up_and_what_goes_on_are_the_accounts_own(db, account, machine, make_job, make_account):
    poisoned, failed, cancelled, waiting = (make_job(max_attempts=1) for _ in range(4))
    machine.requeue(machine.claim(poisoned))
    machine.claim(failed)
    machine.set(failed, state="failed", error_code="bad_data", finished_at=1.0)
    machine.cancel(cancelled)
    with db.session() as session:
        assert [job.id for job in queue.dead_letters(session, account).rows] == [poisoned]
        assert [job.id for job in queue.listed(session, account).rows] == [waiting]
        assert queue.counted(session, account) == {"queued": 1}
        stranger = make_account("stranger")
        assert queue.dead_letters(session, stranger).rows == queue.listed(session, stranger).rows == []
        assert queue.counted(session, stranger) == {}
