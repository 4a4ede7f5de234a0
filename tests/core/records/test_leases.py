import pytest
from sqlalchemy import delete, event, text, update
from sqlalchemy.exc import DBAPIError

from core.records import jobs
from core.records.jobs import Asked, CancelRequested, Claim, Event, Fenced
from core.records.tables import Job
from core.specs.training import TrainSpec


def test_a_job_is_claimed_beaten_and_finished(machine, make_job):
    job_id = make_job()
    held = machine.claim()
    assert held == Claim(job_id, lease_epoch=1, owner="worker", attempt=1)
    assert machine.beat(held, step=4, total_steps=9, trained_tokens=40, phase="training") is Asked.NOTHING
    job = machine.job(job_id)
    assert (job.state, job.step, job.total_steps, job.trained_tokens, job.phase) == ("running", 4, 9, 40, "training")
    machine.succeed(held)
    job = machine.job(job_id)
    assert (job.state, job.step, job.trained_tokens, job.lease_owner, job.lease_until) == (
        "succeeded",
        9,
        90,
        None,
        None,
    )
    assert job.created_at <= job.started_at <= job.finished_at
    assert machine.kinds(job_id) == ["created", "claimed", "succeeded"]


def test_nothing_to_take_is_none(machine, make_job):
    assert machine.claim() is None
    assert machine.claim("ftjob-nosuch") is None
    job_id = make_job()
    machine.claim(job_id)
    assert machine.claim(job_id) is None


def test_the_oldest_job_is_taken_first_and_a_named_one_before_it(machine, make_job):
    first, second, third = make_job(), make_job(), make_job()
    for created_at, job_id in enumerate((first, second, third)):
        machine.set(job_id, created_at=float(created_at))
    assert [machine.claim(second).job_id, machine.claim().job_id, machine.claim().job_id] == [second, first, third]


def test_what_a_dead_worker_left_is_taken_before_what_waits(machine, make_job):
    waiting, orphan = make_job(), make_job()
    machine.beat(machine.claim(orphan), step=1)
    machine.expire(orphan)
    assert [machine.claim().job_id, machine.claim().job_id] == [orphan, waiting]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_claim_reads_an_index_and_sorts_nothing_however_long_the_queue(db, machine, make_job):
    make_job()
    plans = []

    def explain(connection, _cursor, statement, parameters, *_):
        if "UPDATE jobs" in statement:
            found = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append("\n".join(row[3] for row in found))

    event.listen(db.engine, "before_cursor_execute", explain)
    machine.claim()
    event.remove(db.engine, "before_cursor_execute", explain)
    assert len(plans) == 2
    for plan in plans:
        assert "USING INDEX jobs_to_claim (state=?)" in plan
        assert "SCAN jobs" not in plan
        assert "TEMP B-TREE" not in plan


def test_a_job_that_must_wait_is_not_taken_early(machine, make_job):
    job_id = make_job()
    machine.requeue(machine.claim())
    machine.set(job_id, run_after=4e9)
    assert machine.claim() is None


def test_a_lease_that_is_over_is_taken_and_the_one_before_is_fenced(machine, make_job):
    job_id = make_job()
    zombie = machine.claim(owner="zombie")
    machine.beat(zombie, step=3)
    machine.expire(job_id)
    heir = machine.claim(owner="heir")
    assert (heir.lease_epoch, heir.attempt) == (2, 2)
    with pytest.raises(Fenced, match="no longer held with epoch 1 by zombie"):
        machine.beat(zombie, step=9)
    assert machine.job(job_id).step == 3


def test_a_late_beat_revives_a_lease_that_nobody_took(machine, make_job):
    job_id = make_job()
    held = machine.claim()
    machine.expire(job_id)
    machine.beat(held)
    assert machine.claim() is None
    assert machine.job(job_id).lease_until > 1e9


def writes(machine, db):
    """All that the holder of a claim may write, by name."""
    return {
        "beat": lambda held: machine.beat(held, step=9),
        "record": lambda held: jobs.record(db, held, [Event("step", "late")]),
        "checkpoint": lambda held: jobs.record_checkpoint(db, held, step=5, metrics={}),
        "succeed": machine.succeed,
        "fail": lambda held: jobs.fail(db, held, code="x", message="y"),
        "requeue": machine.requeue,
        "drain": lambda held: jobs.drain(db, held),
        "confirm_cancelled": lambda held: jobs.confirm_cancelled(db, held),
    }


NAMES = ("beat", "record", "checkpoint", "succeed", "fail", "requeue", "drain", "confirm_cancelled")


@pytest.mark.parametrize("name", NAMES)
def test_a_zombie_writes_nothing_but_that_it_was_fenced(db, machine, make_job, name):
    job_id = make_job()
    zombie = machine.claim(owner="zombie")
    machine.expire(job_id)
    machine.claim(owner="heir")
    before = vars(machine.job(job_id))
    with pytest.raises(Fenced):
        writes(machine, db)[name](zombie)
    after = vars(machine.job(job_id))
    assert {k: v for k, v in after.items() if k[0] != "_"} == {k: v for k, v in before.items() if k[0] != "_"}
    assert machine.kinds(job_id) == ["created", "claimed", "claimed", "fenced"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "confirm_cancelled"])
def test_without_the_guard_a_zombie_gets_through(db, machine, make_job, monkeypatch, name):
    """The negative control of the fence: by state alone, as other queues do it, a superseded attempt is believed."""
    job_id = make_job()
    zombie = machine.claim(owner="zombie")
    machine.expire(job_id)
    machine.claim(owner="heir")

    def by_state_alone(held):
        return Job.id == held.job_id, Job.state == "running"

    monkeypatch.setattr("core.records.leases.guard", by_state_alone)
    writes(machine, db)[name](zombie)
    assert "fenced" not in machine.kinds(job_id)


def test_nothing_is_written_about_a_job_that_has_ended(db, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    machine.succeed(held)
    for write in writes(machine, db).values():
        with pytest.raises(Fenced):
            write(held)
    assert machine.job(job_id).state == "succeeded"


def test_a_beat_tells_that_cancelling_was_asked_for(db, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    with pytest.raises(ValueError, match="was not asked to be cancelled"):
        jobs.confirm_cancelled(db, held)
    machine.cancel(job_id)
    assert machine.job(job_id).state == "running"
    assert machine.beat(held) is Asked.TO_CANCEL
    jobs.confirm_cancelled(db, held)
    assert machine.job(job_id).state == "cancelled"
    assert machine.kinds(job_id) == ["created", "claimed", "cancel_requested", "cancelled"]


def test_a_job_asked_to_be_cancelled_does_not_succeed(db, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    machine.cancel(job_id)
    with pytest.raises(CancelRequested):
        machine.succeed(held)
    assert machine.job(job_id).state == "running"
    assert machine.kinds(job_id) == ["created", "claimed", "cancel_requested"]
    jobs.confirm_cancelled(db, held)
    assert machine.job(job_id).state == "cancelled"


@pytest.mark.parametrize("leave", ["requeue", "drain"])
def test_a_job_asked_to_be_cancelled_does_not_go_back_to_the_queue(db, machine, make_job, leave):
    job_id = make_job()
    held = machine.claim()
    machine.cancel(job_id)
    assert writes(machine, db)[leave](held) == "cancelled"
    assert machine.job(job_id).state == "cancelled"


def test_a_failure_says_why(db, machine, make_job):
    job_id = make_job()
    details = [{"line": 3, "code": "too_long"}]
    said = {"message": "Line 3 is too long.", "param": "training_file", "details": details}
    jobs.fail(db, machine.claim(), code="invalid_training_file", **said)
    job = machine.job(job_id)
    assert (job.state, job.error_code, job.error_message) == ("failed", "invalid_training_file", "Line 3 is too long.")
    assert (job.error_param, job.error_details) == ("training_file", details)
    assert machine.kinds(job_id)[-1] == "failed"


def test_a_retry_waits_longer_each_time_and_never_more_than_a_quarter_of_an_hour(db, machine, make_job):
    job_id = make_job(max_attempts=9)
    for attempt, expected_s in enumerate((15, 30, 60, 120, 240, 480, 900, 900), start=1):
        held = machine.claim()
        machine.beat(held, step=attempt)
        assert jobs.requeue(db, held, code="crash", message="It crashed.", retry_base_s=15) == "queued"
        with db.session() as session:
            event = jobs.events(session, machine.account, job_id, limit=1).rows[0]
        assert 0.8 * expected_s - 0.1 <= event.event_data["delay_s"] <= 1.2 * expected_s + 0.1
        machine.set(job_id, run_after=0.0)


def test_attempts_run_out(machine, make_job):
    job_id = make_job(max_attempts=2)
    for step in (1, 2):
        held = machine.claim()
        machine.beat(held, step=step)
        state = machine.requeue(held)
    job = machine.job(job_id)
    assert (state, job.state, job.error_code) == ("failed", "failed", "attempts_exhausted")
    assert job.error_message == "All 2 attempts ended early. The last one: The trainer crashed."


def test_two_attempts_in_a_row_without_a_step_are_poison(machine, make_job):
    job_id = make_job(max_attempts=9)
    assert machine.requeue(machine.claim()) == "queued"
    assert machine.requeue(machine.claim()) == "failed"
    job = machine.job(job_id)
    assert (job.error_code, job.attempt, job.barren_deaths) == ("poison", 2, 2)


def test_a_step_between_two_deaths_is_no_poison(machine, make_job):
    make_job(max_attempts=9)
    machine.requeue(machine.claim())
    held = machine.claim()
    machine.beat(held, step=1)
    assert machine.requeue(held) == "queued"
    held = machine.claim()
    machine.beat(held, step=1)  # it resumed at step 1 and has not moved
    assert machine.requeue(held) == "queued"
    assert machine.requeue(machine.claim()) == "failed"


def test_what_could_not_be_helped_is_no_death(machine, make_job):
    job_id = make_job(max_attempts=9)
    for _ in range(4):
        assert machine.requeue(machine.claim(), is_death=False) == "queued"
    assert machine.job(job_id).barren_deaths == 0


def test_a_drained_attempt_does_not_count(db, machine, make_job):
    job_id = make_job(max_attempts=1)
    for preemption in (1, 2, 3):
        assert jobs.drain(db, machine.claim()) == "queued"
        job = machine.job(job_id)
        assert (job.attempt, job.preemptions, job.lease_owner, job.lease_until) == (0, preemption, None, None)
    machine.succeed(machine.claim())
    assert machine.job(job_id).state == "succeeded"


def test_events_are_written_together_in_their_order(db, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    steps = [Event("step", f"Step {n}", type="metrics", step=n, data={"train_loss": 1 / n}) for n in (1, 2, 3)]
    jobs.record(db, held, steps)
    jobs.record(db, held, [])
    with db.session() as session:
        rows = jobs.events(session, machine.account, job_id).rows
    assert [(row.step, row.type, row.lease_epoch) for row in rows[:3]] == [(n, "metrics", 1) for n in (3, 2, 1)]
    assert rows[0].event_data == {"train_loss": 1 / 3}


def test_a_worker_learns_what_it_is_to_do(db, machine, make_job):
    job_id = make_job(suffix="bot")
    held = machine.claim()
    work = jobs.work_of(db, held)
    assert (work.job.id, work.job.suffix, work.training_file.filename) == (job_id, "bot", "train.jsonl")
    assert (work.validation_file, list(work.checkpoints)) == (None, [])
    assert TrainSpec.model_validate(work.job.spec).seed == 7
    machine.expire(job_id)
    machine.claim()
    with pytest.raises(Fenced):
        jobs.work_of(db, held)


BREAKS = {
    "take it up again": update(Job).values(state="queued"),
    "touch it": update(Job).values(step=Job.step),
    "explain it": update(Job).values(error_message="It was not our fault."),
    "delete it": delete(Job),
}


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_what_has_ended_stands_whoever_writes(db, machine, make_job, end):
    job_id = make_job()
    machine.set(job_id, state=end)
    for statement in BREAKS.values():
        with pytest.raises(DBAPIError, match="a finished job does not change"), db.writing() as session:
            session.execute(statement)
    assert (machine.job(job_id).state, machine.job(job_id).error_message) == (end, None)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_has_ended_is_not_replaced_either(db, machine, make_job):
    ended, other = make_job(), make_job()
    machine.set(ended, state="failed")
    columns = ", ".join(column.name for column in Job.__table__.columns)
    copied = columns.replace("state", "'queued'", 1)
    for statement in (
        f"INSERT OR REPLACE INTO jobs ({columns}) SELECT {copied} FROM jobs WHERE id = '{ended}'",
        f"UPDATE OR REPLACE jobs SET id = '{ended}' WHERE id = '{other}'",
    ):
        with pytest.raises(DBAPIError, match="a finished job does not change"), db.writing() as session:
            session.execute(text(statement))
    assert machine.job(ended).state == "failed"


def test_without_the_trigger_what_has_ended_could_be_altered(db, machine, make_job):
    """The negative control: it is the trigger that keeps it, nothing else does."""
    job_id = make_job()
    machine.set(job_id, state="failed")
    with db.writing() as session:
        on = " ON jobs" if db.engine.dialect.name == "postgresql" else "_update"
        session.execute(text(f"DROP TRIGGER finished_jobs_stand{on}"))
        session.execute(update(Job).values(state="queued"))
        assert session.get_one(Job, job_id).state == "queued"
        session.rollback()  # the trigger is there again
    assert machine.job(job_id).state == "failed"
