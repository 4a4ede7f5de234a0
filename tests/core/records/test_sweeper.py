from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select, update

from core.records import jobs, presences
from core.records.database import now_s
from core.records.tables import Job, Leader, Presence


def test_a_job_whose_bell_was_never_rung_is_rung_for(machine, make_job):
    first, second = make_job(), make_job()
    machine.set(first, created_at=1.0)
    assert machine.sweep() == [first, second]
    assert machine.sweep() == []


def test_a_bell_that_was_rung_is_rung_again_ever_more_seldom(db, machine, make_job):
    job_id = make_job()
    with db.writing() as session:
        jobs.mark_rung(session, job_id)
    assert machine.sweep() == []
    for rung_s_ago in (5, 10, 20, 40, 60, 60):
        with db.writing() as session:
            session.execute(update(Job).values(last_rung_at=now_s() - rung_s_ago + 2))
        assert machine.sweep() == []
        with db.writing() as session:
            session.execute(update(Job).values(last_rung_at=now_s() - rung_s_ago - 0.1))
        assert machine.sweep() == [job_id]


def test_no_more_bells_than_workers_can_hear(machine, make_job):
    made = {make_job() for _ in range(5)}
    first, second = machine.sweep(most=3), machine.sweep(most=3)
    assert (len(first), len(second)) == (3, 2)
    assert set(first) | set(second) == made


def test_a_waiting_retry_is_rung_for_when_its_time_comes(machine, make_job):
    job_id = make_job()
    machine.requeue(machine.claim())
    machine.set(job_id, run_after=4e9)
    assert machine.sweep() == []
    machine.set(job_id, run_after=0.0)
    assert machine.sweep() == [job_id]


def test_a_job_of_a_dead_worker_is_rung_for_and_its_heir_takes_it(machine, make_job):
    job_id = make_job()
    machine.beat(machine.claim(), step=1)
    assert machine.sweep() == []
    machine.expire(job_id)
    assert machine.sweep() == [job_id]
    assert machine.claim(job_id).attempt == 2


def test_a_dead_worker_that_was_to_cancel_has_cancelled(machine, make_job):
    job_id = make_job()
    machine.claim()
    machine.cancel(job_id)
    assert machine.sweep() == []
    assert machine.job(job_id).state == "running"
    machine.expire(job_id)
    assert machine.claim(job_id) is None
    assert machine.sweep() == []
    assert machine.job(job_id).state == "cancelled"


def test_a_dead_last_attempt_is_attempts_exhausted(machine, make_job):
    job_id = make_job(max_attempts=1)
    machine.beat(machine.claim(), step=1)
    machine.expire(job_id)
    assert machine.claim() is None
    machine.sweep()
    job = machine.job(job_id)
    assert (job.state, job.error_code) == ("failed", "attempts_exhausted")
    assert job.error_message == "All 1 attempts ended early. The last one: its worker was lost."


def test_two_workers_lost_without_a_step_are_poison(machine, make_job):
    job_id = make_job(max_attempts=9)
    for _ in range(2):
        machine.claim()
        machine.expire(job_id)
    assert machine.claim() is None
    machine.sweep()
    assert (machine.job(job_id).state, machine.job(job_id).error_code) == ("failed", "poison")


def test_one_process_sweeps_and_another_follows_when_it_is_gone(db, machine, make_job):
    assert machine.sweep("first") == []
    job_id = make_job()
    assert machine.sweep("second") == []
    assert machine.sweep("first") == [job_id]
    with db.writing() as session:
        session.execute(update(Leader).values(until=0.0))
    other = make_job()
    assert machine.sweep("second") == [other]
    with db.session() as session:
        assert session.scalars(select(Leader.owner)).all() == ["second"]


def test_sweepers_that_start_at_once_ring_once(machine, make_job):
    made = {make_job() for _ in range(4)}
    with ThreadPoolExecutor(6) as pool:
        rung = [job_id for ids in pool.map(lambda n: machine.sweep(f"sweeper {n}"), range(6)) for job_id in ids]
    assert sorted(rung) == sorted(made)


def test_processes_long_gone_are_forgotten(db, machine):
    for name, beat_at in (("old", 1.0), ("new", 4e9)):
        presences.beat(db, name, role="engine", is_ready=True, details={})
        with db.writing() as session:
            session.execute(update(Presence).where(Presence.id == name).values(beat_at=beat_at))
    machine.sweep()
    with db.session() as session:
        assert session.scalars(select(Presence.id)).all() == ["new"]
