"""The job machine against a small model of it: whatever happens in whatever order, both say the same."""

import dataclasses

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import and_, select

from core.records import jobs
from core.records.jobs import Asked, CancelRequested, Fenced, NotCancellable, NotPausable, NotResumable
from core.records.tables import Adapter, Job

INDEX = st.integers(0, 99)
STEPS = st.integers(0, 6)


@dataclasses.dataclass
class Expected:
    """What a job's row should be."""

    id: str
    max_attempts: int
    state: str = "queued"
    attempt: int = 0
    epoch: int = 0
    deaths: int = 0
    step: int = 0
    error: str | None = None
    has_moved: bool = False
    is_expired: bool = False
    is_cancelling: bool = False
    is_pausing: bool = False

    def deaths_now(self):
        return 0 if self.has_moved else self.deaths + 1

    def ends_as(self):
        """What a death of the present attempt makes of it, and why; the state queued if it may be tried again."""
        if self.is_cancelling:
            return "cancelled", None
        if self.deaths_now() >= 2:
            return "failed", "poison"
        if self.attempt >= self.max_attempts:
            return "failed", "attempts_exhausted"
        return ("paused" if self.is_pausing else "queued"), None

    def asked(self):
        """What a beat tells."""
        if self.is_cancelling:
            return Asked.TO_CANCEL
        return Asked.TO_PAUSE if self.is_pausing else Asked.NOTHING

    def has_ended(self):
        return self.state in {"succeeded", "failed", "cancelled"}

    def is_claimable(self):
        if self.state == "queued":
            return self.attempt < self.max_attempts
        return self.state == "running" and self.is_expired and self.ends_as()[0] == "queued"

    def claim(self):
        if self.state == "running":
            self.deaths = self.deaths_now()
        self.state, self.has_moved, self.is_expired = "running", False, False
        self.attempt, self.epoch = self.attempt + 1, self.epoch + 1

    def end(self, state, error=None):
        self.state, self.error, self.is_expired = state, error, False
        self.is_pausing = self.is_pausing and self.has_ended()  # an ended row is left as it was


class Jobs(RuleBasedStateMachine):
    """A customer, workers dead and alive, and a sweeper, in any order."""

    def __init__(self, machine, make_job):
        super().__init__()
        self.machine, self.make_job = machine, make_job
        self.expected, self.claims = [], []

    def job(self, index):
        return self.expected[index % len(self.expected)]

    def holder(self, index):
        """A claim of some time, the model of its job, and whether the claim should still hold."""
        job, held = self.claims[index % len(self.claims)]
        return job, held, job.state == "running" and job.epoch == held.lease_epoch

    @staticmethod
    def outcome(act, *given, **named):
        try:
            return act(*given, **named)
        except (Fenced, CancelRequested, NotCancellable, NotPausable, NotResumable) as error:
            return type(error)

    @precondition(lambda self: len(self.expected) < 3)
    @rule(max_attempts=st.integers(1, 4))
    def create(self, max_attempts):
        self.expected.append(Expected(self.make_job(max_attempts=max_attempts), max_attempts))

    @precondition(lambda self: self.expected)
    @rule(index=INDEX)
    def claim(self, index):
        job = self.job(index)
        held = self.machine.claim(job.id)
        assert (held is not None) == job.is_claimable()
        if held is not None:
            job.claim()
            assert (held.lease_epoch, held.attempt) == (job.epoch, job.attempt)
            self.claims.append((job, held))

    @precondition(lambda self: self.expected)
    @rule(index=INDEX)
    def lease_runs_out(self, index):
        job = self.job(index)
        if job.state == "running":
            self.machine.expire(job.id)
            job.is_expired = True

    @precondition(lambda self: self.claims)
    @rule(index=INDEX, step=STEPS)
    def beat(self, index, step):
        job, held, holds = self.holder(index)
        assert self.outcome(self.machine.beat, held, step=step) == (job.asked() if holds else Fenced)
        if holds:
            job.has_moved, job.step, job.is_expired = job.has_moved or step != job.step, step, False

    @precondition(lambda self: self.claims)
    @rule(index=INDEX)
    def succeed(self, index):
        job, held, holds = self.holder(index)
        adapter = self.outcome(self.machine.succeed, held)
        if not holds:
            assert adapter is Fenced
        elif job.is_cancelling:
            assert adapter is CancelRequested
        else:
            assert adapter.job_id == job.id
            job.end("succeeded")
            job.step = 9

    @precondition(lambda self: self.claims)
    @rule(index=INDEX)
    def fail(self, index):
        job, held, holds = self.holder(index)
        assert self.outcome(jobs.fail, self.machine.db, held, code="x", message="y") == (None if holds else Fenced)
        if holds:
            job.end("failed", "x")

    @precondition(lambda self: self.claims)
    @rule(index=INDEX)
    def requeue(self, index):
        job, held, holds = self.holder(index)
        state, error = job.ends_as() if holds else (Fenced, None)
        assert self.outcome(self.machine.requeue, held) == state
        if holds:
            job.deaths = job.deaths_now() if state != "cancelled" else job.deaths
            job.end(state, error)

    @precondition(lambda self: self.claims)
    @rule(index=INDEX)
    def drain(self, index):
        job, held, holds = self.holder(index)
        state = "cancelled" if job.is_cancelling else "paused" if job.is_pausing else "queued"
        state = state if holds else Fenced
        assert self.outcome(jobs.drain, self.machine.db, held) == state
        if holds:
            job.attempt -= state in {"queued", "paused"}
            job.end(state)

    @precondition(lambda self: any(job.is_cancelling for job, _ in self.claims))
    @rule(index=INDEX)
    def confirm_cancelled(self, index):
        job, held, holds = self.holder(index)
        if holds and not job.is_cancelling:
            return
        assert self.outcome(jobs.confirm_cancelled, self.machine.db, held) == (None if holds else Fenced)
        if holds:
            job.end("cancelled")

    @precondition(lambda self: self.expected)
    @rule(index=INDEX)
    def cancel(self, index):
        job = self.job(index)
        has_ended = job.has_ended()
        assert (self.outcome(self.machine.cancel, job.id) is NotCancellable) == has_ended
        if not has_ended:
            job.is_cancelling = True
            job.state = "cancelled" if job.state in {"queued", "paused"} else job.state

    @precondition(lambda self: self.expected)
    @rule(index=INDEX)
    def pause(self, index):
        job = self.job(index)
        row = self.outcome(self.machine.pause, job.id)
        # Where it was asked before, asking again is asking once.
        is_possible = not job.has_ended() and (job.is_pausing or not job.is_cancelling)
        assert (row is NotPausable) == (not is_possible)
        if job.state == "queued":
            job.state = "paused"
        elif job.state == "running" and not job.is_cancelling:
            job.is_pausing = True

    @precondition(lambda self: self.expected)
    @rule(index=INDEX)
    def resume(self, index):
        job = self.job(index)
        is_possible = job.state == "paused" or (job.state == "running" and job.is_pausing)
        assert (self.outcome(self.machine.resume, job.id) is NotResumable) == (not is_possible)
        if is_possible:
            job.is_pausing = False
            job.state = "queued" if job.state == "paused" else job.state

    @rule()
    def sweep(self):
        rung = self.machine.sweep(most=1000)
        for job in self.expected:
            if job.state == "running" and job.is_expired and not job.is_claimable():
                state, error = job.ends_as()
                job.deaths = job.deaths_now() if state != "cancelled" else job.deaths
                job.end(state, error)
        assert set(rung) & {job.id for job in self.expected if not job.is_claimable()} == set()

    @invariant()
    def rows_are_as_expected(self):
        for job in self.expected:
            row = self.machine.job(job.id)
            found = (row.state, row.attempt, row.lease_epoch, row.barren_deaths, row.step, row.error_code)
            assert found == (job.state, job.attempt, job.epoch, job.deaths, job.step, job.error)
            assert (row.cancel_requested_at is not None) == job.is_cancelling
            assert (row.pause_requested_at is not None) == job.is_pausing

    def teardown(self):
        ids = [job.id for job in self.expected]
        with self.machine.db.session() as session:
            finished = session.scalars(select(Adapter.job_id).where(Adapter.job_id.in_(ids))).all()
            for job in self.expected:
                rows = jobs.events(session, self.machine.account, job.id, limit=1000).rows
                epochs = [row.lease_epoch for row in reversed(rows) if row.kind == "claimed"]
                assert epochs == list(range(1, job.epoch + 1))
                assert sum(row.kind in {"succeeded", "failed", "cancelled"} for row in rows) <= 1
        # One adapter for each job that succeeded, and none for any other.
        assert sorted(finished) == sorted(job.id for job in self.expected if job.state == "succeeded")


def test_the_job_machine_does_what_its_model_says(db, machine, make_job):
    examples = 40 if db.engine.dialect.name == "sqlite" else 8
    run_state_machine_as_test(
        lambda: Jobs(machine, make_job),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # a failure is printed as it was found: shrinking takes longer than reading it
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("write", ["beat", "succeed", "fail", "requeue", "drain"])
def test_the_model_notices_a_machine_without_its_fence(machine, make_job, monkeypatch, write):
    """The negative control of the test above: one example, by hand."""
    run = Jobs(machine, make_job)
    run.create(max_attempts=4)
    run.claim(0)
    run.beat(0, step=3)
    run.lease_runs_out(0)
    run.claim(0)
    more = {"step": 5} if write == "beat" else {}

    def by_state_alone(held):
        return Job.id == held.job_id, Job.state == "running"

    monkeypatch.setattr("core.records.leases.guard", by_state_alone)
    with pytest.raises(AssertionError):
        getattr(run, write)(0, **more)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_model_notices_a_machine_that_takes_up_what_is_to_rest(machine, make_job, monkeypatch):
    """A further negative control."""
    run = Jobs(machine, make_job)
    run.create(max_attempts=4)
    run.claim(0)
    run.beat(0, step=3)
    run.pause(0)
    run.lease_runs_out(0)
    monkeypatch.setattr("core.records.claiming._is_orphaned", lambda: and_(Job.state == "running", Job.lease_until < 1))
    with pytest.raises(AssertionError):
        run.claim(0)
