"""Several leases and one trainer: each job keeps its own claim, heartbeats, cancellation, failure, folder and end."""

import os
import signal
from pathlib import Path

import pytest
from job_bench import JobBench, is_running, wait_until

from core.records import jobs
from worker.crew import Crew
from worker.publishing import Publisher
from worker.seat import Seat
from worker.training import Stop, Workshop


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr("worker.crew.LOOK_S", 0.05)


@pytest.fixture
def make_bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    made = []

    def make(**changes):
        made.append(Worker(JobBench(tmp_path, **({"jobs_in_step": 4} | changes))))
        return made[-1]

    yield make
    for worker in made:
        worker.close()
        worker.bench.assert_sound()
        assert not list((tmp_path / "jobs").glob("*/e*")), "a work folder is left"
        worker.bench.close()


@pytest.fixture
def worker(make_bench):
    return make_bench()


class Noted(Crew):
    """Remembers the children and who was in each."""

    seen: list["Noted"] = []  # noqa: RUF012 - emptied by each worker

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.children = []
        Noted.seen.append(self)

    def _supervised(self):
        ending = super()._supervised()
        self.children.append((self._child.pid, ending.exit_code))
        return ending


class Worker:
    """A seat without Celery, looking about in a thread of its own."""

    def __init__(self, bench):
        Noted.seen = []
        self.bench, self.rung = bench, []
        self.shop = Workshop(bench.settings, bench.db, bench.blobs, self.rung.append)
        self.seat = Seat(self.shop, "worker", Noted)

    def start(self):
        self.seat.start()
        return self

    def close(self):
        self.seat.close()
        self.seat.join(60)

    def together(self, *ids, step=2):
        """Starts, and waits until each has done so many steps in one and the same child."""
        self.start()
        for job_id in ids:
            self.bench.wait_for_step(job_id, step)
        assert len(Noted.seen) == 1
        return Noted.seen[0]._child.pid


LONG = {"steps": 100_000, "step_s": 0.05}  # never over; and few steps to be written while a test goes on
STANDING = {"stand_at": 20}  # until let_go(): a job that must not be over before the other has left


def test_jobs_that_wait_are_trained_by_one_trainer_and_each_ends_as_if_alone(worker):
    bench = worker.bench
    ids = [bench.submit(STANDING, steps=21 + 5 * seed, step_s=0.01, seed=seed) for seed in range(4)]
    worker.together(*ids)
    bench.let_go()
    for seed, job_id in enumerate(ids):
        bench.wait_for_end(job_id)
        bench.assert_finished_once(job_id, steps=21 + 5 * seed, seed=seed)
        assert bench.job(job_id).attempt == 1
        assert bench.checkpoints(job_id)
    assert [len(crew.children) for crew in Noted.seen] == [1]


def test_no_more_than_the_setting_says_train_together(make_bench):
    worker = make_bench(jobs_in_step=2)
    bench = worker.bench
    ids = [bench.submit(seed=seed, **LONG) for seed in range(3)]
    worker.together(*ids[:2], step=10)
    assert bench.job(ids[2]).state == "queued"
    bench.cancel(ids[0])
    bench.wait_for_step(ids[2], 2)
    for job_id in ids:
        if bench.job(job_id).state != "cancelled":
            bench.cancel(job_id)
        assert bench.wait_for_end(job_id).state == "cancelled"


def test_a_small_job_after_a_huge_one_is_done_long_before_it(worker):
    bench = worker.bench
    huge = bench.submit(**LONG)
    worker.start()
    bench.wait_for_step(huge, 2)
    small = bench.submit(steps=5, seed=1)
    bench.wait_for_end(small)
    bench.assert_finished_once(small, steps=5, seed=1)
    assert bench.job(huge).state == "running"
    assert bench.job(huge).step < LONG["steps"] / 2
    bench.cancel(huge)
    bench.wait_for_end(huge)


def test_one_after_another_a_small_job_waits_for_the_huge_one(make_bench):
    """The negative control: without jobs in step it does not move."""
    worker = make_bench(jobs_in_step=1)
    bench = worker.bench
    huge = bench.submit(**LONG)
    worker.start()
    bench.wait_for_step(huge, 2)
    small = bench.submit(steps=5, seed=1)
    bench.wait_for_step(huge, bench.job(huge).step + 10)
    assert bench.job(small).state == "queued"
    for job_id in (huge, small):
        bench.cancel(job_id)
        bench.wait_for_end(job_id)


def test_a_cancelled_one_leaves_and_the_other_goes_on_in_the_same_trainer(worker):
    bench = worker.bench
    leaving, staying = bench.submit(**LONG), bench.submit(STANDING, steps=50, step_s=0.01, seed=1)
    pid = worker.together(leaving, staying)
    bench.cancel(leaving)
    assert bench.wait_for_end(leaving).state == "cancelled"
    assert bench.adapters(leaving) == []
    assert is_running(pid)
    bench.let_go()
    bench.wait_for_end(staying)
    bench.assert_finished_once(staying, steps=50, seed=1)
    wait_until(lambda: Noted.seen[0].children == [(pid, 0)])


def test_a_paused_one_leaves_and_the_other_goes_on_in_the_same_trainer(worker):
    bench = worker.bench
    resting, staying = (bench.submit(STANDING, steps=50, step_s=0.01, seed=seed) for seed in range(2))
    pid = worker.together(resting, staying)
    bench.pause(resting)
    bench.wait_for(resting, "paused")
    assert is_running(pid)
    bench.let_go()
    bench.wait_for_end(staying)
    bench.assert_finished_once(staying, steps=50, seed=1)
    wait_until(lambda: Noted.seen[0].children == [(pid, 0)])
    bench.resume(resting)
    bench.wait_for_end(resting)
    bench.assert_finished_once(resting, steps=50)
    last = max(step for epoch, step in bench.steps(resting) if epoch == 1)
    assert [step for epoch, step in bench.steps(resting) if epoch == 2] == list(range(last + 1, 51))


def test_one_that_does_not_hear_that_it_is_to_rest_is_stopped_when_its_worker_has_to_go(make_bench):
    worker = make_bench(drain_s=0.5)
    bench = worker.bench
    deaf, staying = bench.submit({"deaf": True}, **LONG), bench.submit(STANDING, steps=50, step_s=0.01, seed=1)
    worker.together(deaf, staying)
    bench.pause(deaf)
    wait_until(lambda: Noted.seen[0]._attempts[deaf].stop is Stop.PAUSED)
    bench.let_go()
    bench.wait_for_end(staying)
    assert bench.job(deaf).state == "running"
    worker.shop.closing.set()
    assert bench.wait_for(deaf, "paused").barren_deaths == 0


@pytest.mark.parametrize(
    ("faults", "code"), [({"user_error": True}, "row_too_long"), ({"not_finite_at": 9}, "diverged")]
)
def test_one_that_fails_fails_alone(worker, faults, code):
    bench = worker.bench
    well = bench.submit(steps=100, step_s=0.01)
    sick = bench.submit(faults, steps=100, step_s=0.01, seed=1)
    worker.start()
    job = bench.wait_for_end(sick)
    assert (job.state, job.error_code) == ("failed", code)
    bench.wait_for_end(well)
    bench.assert_finished_once(well, steps=100)
    assert bench.job(well).attempt == 1


def test_the_leases_of_all_are_renewed_while_they_train(worker):
    bench = worker.bench
    ids = [bench.submit(seed=seed, **LONG) for seed in range(2)]
    worker.together(*ids)

    def renewed(job_id, until):
        return wait_until(lambda: (now := bench.job(job_id).lease_until) > until and now)

    for job_id in ids:
        assert renewed(job_id, renewed(job_id, bench.job(job_id).lease_until))
    assert [bench.job(job_id).lease_epoch for job_id in ids] == [1, 1]
    for job_id in ids:
        bench.cancel(job_id)
        bench.wait_for_end(job_id)


def test_one_whose_lease_is_lost_writes_nothing_more_and_the_other_goes_on(worker):
    bench = worker.bench
    lost, kept = bench.submit(**LONG), bench.submit(STANDING, steps=50, step_s=0.01, seed=1)
    pid = worker.together(lost, kept)
    bench.expire(lost)
    usurper = jobs.claim(bench.db, owner="usurper", lease_s=60, job_id=lost)
    assert usurper
    wait_until(lambda: lost not in Noted.seen[0]._attempts)
    bench.let_go()
    bench.wait_for_end(kept)
    bench.assert_finished_once(kept, steps=50, seed=1)
    job = bench.job(lost)
    assert (job.state, job.lease_owner, job.lease_epoch) == ("running", "usurper", 2)
    wait_until(lambda: Noted.seen[0].children == [(pid, 0)])


def test_all_are_drained_when_the_worker_has_to_go(worker):
    bench = worker.bench
    ids = [bench.submit(STANDING, steps=50, step_s=0.01, seed=seed) for seed in range(2)]
    worker.together(*ids)
    worker.close()
    for job_id in ids:
        job = bench.job(job_id)
        assert (job.state, job.attempt, job.preemptions) == ("queued", 0, 1)
    assert sorted(worker.rung) == sorted(ids)


def test_a_killed_trainer_is_a_death_for_both_and_both_end_with_their_own_bytes(worker):
    bench = worker.bench
    ids = [bench.submit({"stand_at": 15}, steps=60, step_s=0.01, seed=seed) for seed in range(2)]
    pid = worker.together(*ids, step=12)
    os.kill(pid, signal.SIGKILL)
    for seed, job_id in enumerate(ids):
        assert bench.wait_for_end(job_id).attempt == 2
        bench.assert_finished_once(job_id, steps=60, seed=seed)
        assert min(step for epoch, step in bench.steps(job_id) if epoch == 2) > 10


@pytest.mark.parametrize("die_at", [1, 8])
def test_a_job_that_kills_every_trainer_takes_nobody_with_it(worker, die_at):
    bench = worker.bench
    well = [bench.submit(steps=80, step_s=0.01, seed=seed) for seed in range(2)]
    sick = bench.submit({"die_at": die_at}, steps=80, step_s=0.01, seed=7)
    worker.start()
    assert bench.wait_for_end(sick).error_code in ("poison", "attempts_exhausted")
    for seed, job_id in enumerate(well):
        bench.wait_for_end(job_id)
        bench.assert_finished_once(job_id, steps=80, seed=seed)


def test_where_memory_is_not_enough_for_two_the_first_goes_on_alone(worker):
    bench = worker.bench
    first = bench.submit(STANDING, steps=50, step_s=0.01)
    greedy = bench.submit({"needs_tokens_at_most": 512}, steps=5, seed=1)
    worker.start()
    wait_until(worker.shop.is_crowded.is_set)
    bench.let_go()
    for job_id, steps, seed in ((first, 50, 0), (greedy, 5, 1)):
        assert bench.wait_for_end(job_id).attempt == 1
        bench.assert_finished_once(job_id, steps=steps, seed=seed)
    assert worker.shop.most_in_step == 1
    assert "out_of_memory" not in bench.kinds(first)
    assert bench.kinds(greedy).count("out_of_memory") == 2


def test_a_job_given_to_a_trainer_that_is_just_leaving_gets_another(worker):
    """It says the end of its only job as the second is on the way to it: that is nobody's death."""
    bench = worker.bench
    ids = [bench.submit(steps=1, seed=seed) for seed in range(6)]
    worker.start()
    for seed, job_id in enumerate(ids):
        assert bench.wait_for_end(job_id).attempt == 1
        bench.assert_finished_once(job_id, steps=1, seed=seed)


def test_an_error_of_ours_in_one_attempt_leaves_the_other_alone(worker, monkeypatch):
    bench = worker.bench
    broken, well = bench.submit(**LONG), bench.submit(steps=100, step_s=0.01, seed=1)
    monkeypatch.setattr(Publisher, "checkpoint", failing_for(broken))
    worker.start()
    bench.wait_for_end(well)
    bench.assert_finished_once(well, steps=100, seed=1)
    assert bench.job(broken).state == "running"  # until its lease ends


def failing_for(job_id):
    checkpoint = Publisher.checkpoint

    def failing(publisher, report):
        if publisher._held.job_id == job_id:
            raise ZeroDivisionError
        checkpoint(publisher, report)

    return failing
