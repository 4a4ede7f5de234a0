import pytest

from core.blobs import Blob
from core.records import audit, datasets, jobs
from core.records.jobs import NotCancellable


def test_a_waiting_job_is_cancelled_at_once(db, machine, make_job, account):
    job_id = make_job()
    assert machine.cancel(job_id).state == "cancelled"
    job = machine.job(job_id)
    assert (job.state, job.finished_at is not None) == ("cancelled", True)
    assert machine.kinds(job_id) == ["created", "cancelled"]
    assert machine.claim() is None
    with db.session() as session:
        assert audit.listed(session, account, limit=1).rows[0].target == job_id


def test_asking_twice_to_cancel_is_asking_once(machine, make_job):
    job_id = make_job()
    machine.claim()
    first = machine.cancel(job_id).cancel_requested_at
    assert machine.cancel(job_id).cancel_requested_at == first
    assert machine.kinds(job_id) == ["created", "claimed", "cancel_requested"]


@pytest.mark.parametrize("state", ["paused", "validating_files"])
def test_whatever_does_not_run_is_cancelled_at_once(machine, make_job, state):
    job_id = make_job()
    machine.set(job_id, state=state)
    assert machine.cancel(job_id).state == "cancelled"


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_what_has_ended_cannot_be_cancelled(machine, make_job, state):
    job_id = make_job()
    machine.set(job_id, state=state)
    with pytest.raises(NotCancellable, match=state):
        machine.cancel(job_id)


def test_a_job_needs_files_that_are_there(db, account, spec):
    with db.writing() as session:
        file = datasets.add(session, account, filename="a", purpose="fine-tune", blob=Blob("a" * 64, 7))
        assert datasets.delete(session, account, file.id)
    with db.writing() as session, pytest.raises(LookupError, match=file.id):
        jobs.create(session, account, spec=spec, request={}, training_file_id=file.id)


def test_pages_of_jobs_follow_each_other_newest_first(db, account, machine, make_job):
    made = [make_job() for _ in range(5)]
    for age, job_id in enumerate(made):
        machine.set(job_id, created_at=100.0 + age // 2)  # ties, which the id breaks
    with db.session() as session:
        whole = jobs.listed(session, account, limit=5)
        pages, after = [], None
        while after is None or pages[-1].has_more:
            pages.append(jobs.listed(session, account, after=after, limit=2))
            after = pages[-1].rows[-1].id
    assert [row.id for page in pages for row in page.rows] == [row.id for row in whole.rows]
    assert {row.id for row in whole.rows} == set(made)
    assert [page.has_more for page in pages] == [True, True, False]
    assert whole.has_more is False
    assert [row.created_at for row in whole.rows] == [102.0, 101.0, 101.0, 100.0, 100.0]


def test_events_are_paged_newest_first(db, account, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    jobs.record(db, held, [jobs.Event("step", f"Step {n}", step=n) for n in range(1, 6)])
    with db.session() as session:
        first = jobs.events(session, account, job_id, limit=4)
        second = jobs.events(session, account, job_id, after=first.rows[-1].id, limit=4)
    assert [row.step for row in first.rows] == [5, 4, 3, 2]
    assert [row.kind for row in second.rows] == ["step", "claimed", "created"]
    assert (first.has_more, second.has_more) == (True, False)
