"""Histories of jobs that ended long ago go, whole, in small transactions; all others stay."""

from core.records import evaluations, forgetting, leases
from core.records.events import Event

DAY = 86_400.0


def forgotten(db, days=90):
    return sum(forgetting.forgetting(db, kept_s=days * DAY))


def step(number, loss):
    return Event("step", f"Step {number}", type="metrics", step=number, data={"step": number, "train_loss": loss})


def ended(db, machine, make_job, days_ago, outcome=None):
    """A job of two steps that ended so many days ago. A finished row stands, so it is made one in a single move."""
    job_id = make_job()
    leases.record(db, machine.claim(job_id), [step(1, 0.5), step(2, 0.25)])
    assert machine.kinds(job_id) == ["created", "claimed", "step", "step"]
    ended_at = machine.job(job_id).created_at - days_ago * DAY
    machine.set(job_id, state="succeeded", lease_until=None, outcome=outcome, finished_at=ended_at)
    return job_id


def test_a_history_goes_once_its_job_ended_longer_ago_than_is_kept(db, machine, make_job):
    old, young = (ended(db, machine, make_job, days) for days in (91, 89))
    assert forgotten(db) == 4
    assert machine.kinds(old) == []
    assert machine.kinds(young) == ["created", "claimed", "step", "step"]
    assert forgotten(db) == 0


def test_a_job_that_has_not_ended_keeps_its_history_however_old(db, machine, make_job):
    waiting, running = make_job(), make_job()
    machine.claim(running)
    for job_id in (waiting, running):
        machine.set(job_id, created_at=1.0)
    assert forgotten(db, days=1) == 0
    assert machine.kinds(waiting) == ["created"]


def test_what_the_served_step_was_measured_to_be_stays(db, machine, make_job):
    job_id = ended(db, machine, make_job, 91, outcome={"served_step": 2})
    with db.session() as session:
        told = evaluations.evaluations(session, [job_id])
    assert forgotten(db) == 3
    with db.session() as session:
        assert evaluations.evaluations(session, [job_id]) == told == {job_id: {"step": 2, "train_loss": 0.25}}
    assert forgotten(db) == 0


def test_much_is_forgotten_in_small_transactions(db, machine, make_job, monkeypatch):
    monkeypatch.setattr(forgetting, "MANY", 2)
    ended(db, machine, make_job, 91)
    assert list(forgetting.forgetting(db, kept_s=90 * DAY)) == [2, 2]
