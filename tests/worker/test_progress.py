import time
from types import SimpleNamespace

import pytest
from job_bench import JobBench, wait_until
from sqlalchemy.exc import OperationalError

from core.records import jobs
from core.records.events import Event
from core.specs.assignment import PhaseReport, StepReport, ValidationReport, WarningReport
from worker import progress as module
from worker.progress import Progress, Verdict, validation_event, validation_events


def step(number, of=10, loss=1.0):
    return StepReport(
        step=number,
        total_steps=of,
        epoch=number / of,
        train_loss=loss,
        train_mean_token_accuracy=0.5,
        learning_rate=0.1,
        grad_norm=1.0,
        tokens=8,
        trained_tokens=number * 8,
        tokens_per_s=80.0,
        memory_bytes=1,
    )


@pytest.fixture
def bench(tmp_path):
    bench = JobBench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def held(bench):
    job_id = bench.submit()
    return jobs.claim(bench.db, owner="worker", lease_s=60.0, job_id=job_id)


@pytest.fixture
def lost():
    return []


@pytest.fixture
def progress(bench, held, lost):
    return Progress(bench.db, held, lease_s=60.0, heartbeat_s=0.3, on_lost=lambda: lost.append("once"))


def test_what_is_taken_is_written_in_order_without_being_asked(bench, held, progress):
    with progress:
        progress.take(PhaseReport(phase="training"))
        for number in (1, 2, 3):
            progress.take(step(number))
        progress.take(WarningReport(code="step_skipped", message="Step 3 was skipped", step=3))
        wait_until(lambda: bench.job(held.job_id).step == 3)
    job = bench.job(held.job_id)
    assert (job.phase, job.total_steps, job.trained_tokens) == ("training", 10, 24)
    assert bench.kinds(held.job_id)[2:] == ["phase", "step", "step", "step", "step_skipped"]


def test_phases_that_take_turns_are_told_of_once_and_the_row_says_the_present_one(bench, held, progress):
    with progress:
        for phase in ("training", "evaluating", "training", "evaluating"):
            progress.take(PhaseReport(phase=phase))
        progress.write()
    assert [event.message for event in bench.events(held.job_id)][2:] == ["Training", "Evaluating"]
    assert bench.job(held.job_id).phase == "evaluating"


def test_a_thousand_steps_a_second_are_a_few_writes(bench, held, progress, monkeypatch):
    writes, record, began_at = [], jobs.record, time.monotonic()
    monkeypatch.setattr(jobs, "record", lambda *args: (writes.append(1), record(*args)))
    with progress:
        for number in range(1, 1001):
            progress.take(step(number, of=1000))
            time.sleep(0.001)
        progress.write()
    assert len(bench.steps(held.job_id)) == 1000
    assert len(writes) <= 3 + (time.monotonic() - began_at) / 0.2  # a heartbeat is 0.3 s, give or take a fifth


def test_an_idle_run_keeps_its_lease(bench, held, progress):
    first = bench.job(held.job_id).lease_until
    with progress:
        wait_until(lambda: bench.job(held.job_id).lease_until > first + 1)
        assert progress.verdict is Verdict.GO_ON


def test_after_stop_no_heartbeat_comes(bench, held, progress):
    with progress:
        progress.stop()
        before = bench.job(held.job_id).lease_until
        time.sleep(0.7)  # two heartbeats
        assert bench.job(held.job_id).lease_until == before


def test_a_customers_cancel_is_heard_at_the_next_heartbeat(bench, held, progress, lost):
    with progress:
        bench.cancel(held.job_id)
        wait_until(lambda: progress.verdict is Verdict.CANCEL)
    assert lost == []


def test_a_wish_to_pause_is_heard_at_the_next_heartbeat_and_so_is_its_end(bench, held, progress):
    with progress:
        bench.pause(held.job_id)
        wait_until(lambda: progress.verdict is Verdict.PAUSE)
        bench.resume(held.job_id)
        wait_until(lambda: progress.verdict is Verdict.GO_ON)


def test_a_fenced_attempt_is_lost_once_and_says_no_more(bench, held, progress, lost):
    with progress:
        bench.set(held.job_id, lease_epoch=held.lease_epoch + 1)
        wait_until(lambda: progress.verdict is Verdict.LOST)
        progress.take(step(1))
        with pytest.raises(jobs.Fenced):
            progress.write()
    assert len(lost) == 1
    assert bench.steps(held.job_id) == []


def test_nothing_noted_is_lost_while_the_database_is_away(bench, held, progress, monkeypatch):
    record, is_away = jobs.record, iter([True, True])

    def away_at_first(*args):
        if next(is_away, False):
            raise OperationalError("INSERT", {}, Exception("gone"))
        record(*args)

    monkeypatch.setattr(jobs, "record", away_at_first)
    with progress:
        for number in (1, 2):
            progress.take(step(number))
            with pytest.raises(OperationalError):
                progress.write()
        progress.note(Event("last", "The last one"))
        progress.write()
    assert bench.kinds(held.job_id)[-3:] == ["step", "step", "last"]


def test_without_a_heartbeat_it_gives_up_before_the_lease_is_over(bench, held, lost, monkeypatch):
    def away(*_, **__):
        raise OperationalError("UPDATE", {}, Exception("gone"))

    monkeypatch.setattr(jobs, "beat", away)
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    with Progress(bench.db, held, lease_s=4.0, heartbeat_s=0.01, on_lost=lambda: lost.append(now)) as progress:
        now += 2.5
        assert progress.verdict is Verdict.GO_ON
        now += 1.0
        wait_until(lambda: lost)
    assert (lost, progress.verdict) == ([103.5], Verdict.LOST)


def test_a_validation_repeats_its_own_steps_metrics_and_no_others():
    said = {"total_steps": 10, "valid_loss": 2.0, "valid_mean_token_accuracy": 0.25}
    assert validation_event(ValidationReport(step=4, **said), step(4, loss=1.5)).data["train_loss"] == 1.5
    late = validation_event(ValidationReport(step=5, **said), step(4, loss=1.5)).data
    assert (late["train_loss"], late["step"], late["full_valid_loss"]) == (None, 5, 2.0)


@pytest.mark.parametrize("is_enough", [True, False])
def test_the_validation_that_ends_a_run_says_so_and_names_the_best_step(is_enough):
    said = {"total_steps": 10, "valid_loss": 2.0, "valid_mean_token_accuracy": 0.25, "best_step": 2}
    found, *more = validation_events(ValidationReport(step=4, is_enough=is_enough, **said), None)
    assert found.data["best_step"] == 2
    assert [(event.kind, event.step, event.data) for event in more] == [("stopped_early", 4, {"best_step": 2})][
        :is_enough
    ]
