"""Whole attempts in this process, with a real child, a real database and a real store."""

import json
import threading
import time
from pathlib import Path

import pytest
from job_bench import JobBench, is_running, wait_until
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from core.records import jobs
from core.records.tables import File
from core.specs.rate_search import search_around
from worker.crew import Crew
from worker.seat import Seat
from worker.training import Workshop


@pytest.fixture
def make_bench(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    made = []

    def make(**changes):
        made.append(Worker(JobBench(tmp_path, **changes)))
        return made[-1]

    yield make
    for worker in made:
        worker.bench.assert_sound()
        assert not list((tmp_path / "jobs").glob("*/e*")), "a work folder is left"
        worker.bench.close()


@pytest.fixture
def worker(make_bench):
    return make_bench()


class Worker:
    """One worker without Celery: its attempts run in the test's own thread, or beside it."""

    def __init__(self, bench):
        self.bench = bench
        self.rung = []
        self.shop = Workshop(bench.settings, bench.db, bench.blobs, self.rung.append)

    def claim(self, job_id, owner="worker"):
        held = jobs.claim(self.bench.db, owner=owner, lease_s=self.bench.settings.lease_s, job_id=job_id)
        assert held, "nothing to claim"
        return held

    def attempt(self, job_id):
        """One attempt, now, whatever the wait before a further one."""
        self.bench.set(job_id, run_after=0)
        Crew(self.claim(job_id), self.shop).run()
        return self.bench.job(job_id)

    def attempts(self, job_id):
        """Until the job has ended, however often it is put back."""
        while (job := self.attempt(job_id)).state == "queued":
            assert job.attempt < job.max_attempts
        return job

    def beside(self, job_id):
        """An attempt in a thread of its own."""
        crew = Crew(self.claim(job_id), self.shop)
        thread = threading.Thread(target=crew.run)
        thread.start()
        return crew, thread


def test_a_job_is_trained_published_and_marked(worker):
    bench = worker.bench
    job_id = bench.submit(steps=12, eval_steps=4, is_validated=True)
    job = worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=12)
    assert (job.step, job.total_steps, job.trained_tokens, job.attempt) == (12, 12, 120, 1)
    (adapter,) = bench.adapters(job_id)
    assert adapter.peft_type == "LORA"
    assert adapter.details["metrics"] == {"train_loss": pytest.approx(0.5, abs=0.5)}
    checkpoints = bench.checkpoints(job_id)
    assert [row.step for row in checkpoints] == [5, 10]
    assert [row.model_name for row in checkpoints] == [f"{adapter.name}:ckpt-step-{step}" for step in (5, 10)]
    assert worker.rung == []


def test_every_step_is_a_metrics_event_with_openais_names(worker):
    bench = worker.bench
    job_id = bench.submit(steps=4, eval_steps=2, is_validated=True)
    worker.attempt(job_id)
    first, second, validated, *_ = [event for event in bench.events(job_id) if event.type == "metrics"]
    names = {"step", "total_steps", "train_loss", "train_mean_token_accuracy", "valid_loss"}
    names |= {"valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy"}
    assert set(first.event_data) == names | {"learning_rate", "grad_norm", "tokens_per_s", "gpu_mem_bytes"}
    assert first.message == f"Step 1/4: training loss={first.event_data['train_loss']:.3f}"
    assert first.event_data["valid_loss"] is None
    assert validated.event_data["train_loss"] == second.event_data["train_loss"]
    assert validated.event_data["full_valid_loss"] == validated.event_data["valid_loss"]
    assert validated.step == second.step == 2


def test_the_result_file_tells_every_step(worker):
    job_id = worker.bench.submit(steps=6, eval_steps=3, is_validated=True)
    worker.attempt(job_id)
    file, text = worker.bench.result_file(job_id)
    assert file.purpose == "fine-tune-results"
    header, *rows = text.splitlines()
    assert header.split(",")[:3] == ["step", "train_loss", "train_accuracy"]
    assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, 7)]
    assert [bool(row.split(",")[3]) for row in rows] == [False, False, True, False, False, True]


def test_only_the_newest_two_states_stay_in_the_store(worker):
    bench = worker.bench
    job_id = bench.submit(steps=23, n_checkpoints=2)
    worker.attempt(job_id)
    rows = bench.checkpoints(job_id)
    assert [row.step for row in rows if row.state_sha256] == [15, 20]
    assert [row.step for row in rows if row.model_name] == [15, 20]
    blobs = [path for path in (bench.folder / "blobs" / "blobs").glob("*/*") if b"state.json" in path.read_bytes()]
    assert len(blobs) == 2


def test_a_users_error_ends_the_job_with_all_that_the_trainer_said(worker):
    job = worker.attempt(worker.bench.submit({"user_error": True}))
    assert (job.state, job.error_code, job.error_param) == ("failed", "row_too_long", "training_file")
    assert job.error_details == [{"line": 3, "tokens": 99, "limit": 64}]
    assert job.attempt == 1


def test_a_loss_that_is_no_number_fails_the_job_and_keeps_its_checkpoints(worker):
    job_id = worker.bench.submit({"not_finite_at": 7}, steps=12)
    job = worker.attempt(job_id)
    assert (job.state, job.error_code) == ("failed", "diverged")
    assert [row.step for row in worker.bench.checkpoints(job_id)] == [5]


def test_out_of_memory_goes_on_with_smaller_batches_and_costs_no_attempt(worker):
    bench = worker.bench
    job_id = bench.submit({"needs_tokens_at_most": 512}, steps=6)
    job = worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=6)
    assert job.attempt == 1
    said = [event.event_data for event in bench.events(job_id) if event.kind == "out_of_memory"]
    assert said == [{"tokens_per_batch": 1024}, {"tokens_per_batch": 512}]


def test_a_later_attempt_begins_with_what_memory_was_enough_for(worker):
    bench = worker.bench
    job_id = bench.submit({"needs_tokens_at_most": 512, "die_at": 8}, steps=12)
    worker.attempt(job_id)
    worker.attempt(job_id)
    assert bench.kinds(job_id).count("out_of_memory") == 2


def test_out_of_memory_at_the_floor_fails_the_job(worker):
    job = worker.attempt(worker.bench.submit({"needs_tokens_at_most": 8}, tokens_per_batch=128))
    assert (job.state, job.error_code) == ("failed", "out_of_memory")


def test_a_dead_trainer_is_tried_again_and_goes_on_from_its_checkpoint(worker, monkeypatch):
    bench = worker.bench
    monkeypatch.setenv("GRAFT_TEST", "1")
    monkeypatch.setenv("GRAFT_CRASH_AT", "step:7")
    job_id = bench.submit(steps=12)
    job = worker.attempt(job_id)
    assert (job.state, job.attempt, job.barren_deaths) == ("queued", 1, 0)
    assert job.run_after > 0
    assert worker.attempts(job_id).attempt == 2
    bench.assert_finished_once(job_id, steps=12)
    assert [step for epoch, step in bench.steps(job_id) if epoch == 2] == list(range(6, 13))


def test_a_job_that_kills_its_trainer_at_once_is_poison(worker):
    job = worker.attempts(worker.bench.submit({"die_at": 1}, max_attempts=10))
    assert (job.state, job.error_code, job.attempt) == ("failed", "poison", 2)


def test_a_trainer_that_hangs_is_killed_and_tried_again(make_bench):
    worker = make_bench(stall_s=0.5)
    job_id = worker.bench.submit({"hang_at": 3}, steps=6, max_attempts=1)
    job = worker.attempt(job_id)
    assert (job.state, job.error_code) == ("failed", "attempts_exhausted")
    assert "no progress" in job.error_message


def test_what_a_trainer_started_dies_with_it(worker):
    worker.bench.assert_finished_once(run(worker, {"grandchild": True}, steps=3), steps=3)


def run(worker, faults, **changes):
    job_id = worker.bench.submit(faults, **changes)
    worker.attempt(job_id)
    return job_id


@pytest.mark.parametrize("faults", [{}, {"deaf": True}], ids=["obedient", "deaf"])
def test_a_cancelled_job_stops_and_leaves_no_adapter(worker, faults, monkeypatch):
    monkeypatch.setattr("worker.supervision.CANCEL_GRACE_S", 0.5)
    bench = worker.bench
    job_id = bench.submit(faults, steps=100_000, step_s=0.005)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.cancel(job_id)
    thread.join(60)
    assert bench.job(job_id).state == "cancelled"
    assert bench.adapters(job_id) == []
    assert bench.strays() == []


def test_a_cancel_that_comes_as_the_job_succeeds_wins(worker, monkeypatch):
    bench = worker.bench
    job_id = bench.submit(steps=3)
    succeed = jobs.succeed

    def cancelled_just_before(*args, **kwargs):
        bench.cancel(job_id)
        return succeed(*args, **kwargs)

    monkeypatch.setattr(jobs, "succeed", cancelled_just_before)
    assert worker.attempt(job_id).state == "cancelled"
    assert bench.adapters(job_id) == []


@pytest.mark.parametrize(("faults", "step_s"), [({}, 0.02), ({"deaf": True}, 0.2)], ids=["obedient", "deaf"])
def test_a_paused_job_frees_the_seat_and_goes_on_where_it_stopped(make_bench, faults, step_s):
    worker = make_bench(drain_s=0.5)
    bench = worker.bench
    job_id = bench.submit(faults, steps=40, step_s=step_s)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.pause(job_id)
    thread.join(60)
    job = bench.job(job_id)
    assert (job.state, job.attempt, job.preemptions, job.barren_deaths) == ("paused", 0, 0, 0)
    assert worker.rung == []
    assert bench.strays() == []
    assert jobs.claim(bench.db, owner="another", lease_s=60) is None
    bench.resume(job_id)
    if not faults:
        last = max(step for _, step in bench.steps(job_id))
        worker.attempt(job_id)
        bench.assert_finished_once(job_id, steps=40)
        assert [step for epoch, step in bench.steps(job_id) if epoch == 2] == list(range(last + 1, 41))


def test_a_pause_taken_back_too_late_costs_nothing_but_a_turn(worker, monkeypatch):
    bench = worker.bench
    job_id = bench.submit(steps=40, step_s=0.02)
    drain = jobs.drain

    def resumed_just_before(*args, **kwargs):
        bench.resume(job_id)
        return drain(*args, **kwargs)

    monkeypatch.setattr(jobs, "drain", resumed_just_before)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.pause(job_id)
    thread.join(60)
    assert bench.job(job_id).state == "queued"
    assert worker.rung == [job_id]
    worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=40)


@pytest.mark.parametrize(("faults", "step_s"), [({}, 0.02), ({"deaf": True}, 0.2)], ids=["obedient", "deaf"])
def test_a_worker_that_has_to_go_drains_its_job_and_rings_for_it(make_bench, faults, step_s):
    worker = make_bench(drain_s=0.5)
    bench = worker.bench
    job_id = bench.submit(faults, steps=40, step_s=step_s)
    _, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    worker.shop.closing.set()
    thread.join(60)
    job = bench.job(job_id)
    assert (job.state, job.attempt, job.preemptions) == ("queued", 0, 1)
    assert worker.rung == [job_id]
    worker.shop.closing.clear()
    if not faults:
        last = max(step for _, step in bench.steps(job_id))
        worker.attempt(job_id)
        bench.assert_finished_once(job_id, steps=40)
        assert [step for epoch, step in bench.steps(job_id) if epoch == 2] == list(range(last + 1, 41))


def test_a_superseded_attempt_kills_its_trainer_and_writes_nothing(worker):
    bench = worker.bench
    job_id = bench.submit(steps=100_000, step_s=0.005)
    crew, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)
    bench.set(job_id, lease_until=0)
    usurper = worker.claim(job_id, owner="usurper")
    thread.join(60)
    assert not is_running(crew._child.pid)
    job = bench.job(job_id)
    assert (job.state, job.lease_owner, job.lease_epoch) == ("running", "usurper", usurper.lease_epoch)
    kinds = [event.kind for event in bench.events(job_id) if event.id > taken_over(bench, job_id)]
    assert set(kinds) <= {"fenced"}
    assert worker.rung == []


def taken_over(bench, job_id):
    return next(event.id for event in bench.events(job_id) if event.kind == "claimed" and event.lease_epoch == 2)


def test_a_worker_cut_off_from_the_database_stops_before_its_lease_is_over(make_bench, monkeypatch):
    worker = make_bench(lease_s=4.0)
    bench = worker.bench
    job_id = bench.submit(steps=100_000, step_s=0.005)
    crew, thread = worker.beside(job_id)
    bench.wait_for_step(job_id, 2)

    def away(*_, **__):
        raise OperationalError("UPDATE", {}, Exception("gone"))

    for name in ("beat", "record", "drain", "requeue"):
        monkeypatch.setattr(jobs, name, away)
    cut_off_at = time.monotonic()
    wait_until(lambda: not is_running(crew._child.pid))
    assert time.monotonic() - cut_off_at < bench.settings.lease_s
    thread.join(60)
    assert bench.job(job_id).state == "running"


def test_a_database_that_is_away_for_a_moment_costs_nothing(worker, monkeypatch):
    bench = worker.bench
    job_id = bench.submit(steps=8)
    failures = iter([True, True, False])
    succeed = jobs.succeed

    def away_at_first(*args, **kwargs):
        if next(failures):
            raise OperationalError("UPDATE", {}, Exception("gone"))
        return succeed(*args, **kwargs)

    monkeypatch.setattr(jobs, "succeed", away_at_first)
    worker.attempt(job_id)
    bench.assert_finished_once(job_id, steps=8)


def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_run(worker, monkeypatch):
    bench = worker.bench
    put, is_full = bench.blobs.put, iter([True])

    def full_at_first(path):
        if next(is_full, False):
            raise OSError(28, "No space left on device")
        return put(path)

    monkeypatch.setattr(bench.blobs, "put", full_at_first)
    job_id = run(worker, {}, steps=12)
    bench.assert_finished_once(job_id, steps=12)
    assert [row.step for row in bench.checkpoints(job_id)] == [10]
    assert "checkpoint_unpublished" in bench.kinds(job_id)


def test_an_adapter_that_cannot_be_stored_is_tried_again_later(worker, monkeypatch):
    bench = worker.bench
    put, is_full = bench.blobs.put, iter([True])

    def full_for_the_adapter(path):
        if path.name == "final.zip" and next(is_full, False):
            raise OSError(28, "No space left on device")
        return put(path)

    monkeypatch.setattr(bench.blobs, "put", full_for_the_adapter)
    job_id = bench.submit(steps=4)
    job = worker.attempt(job_id)
    assert (job.state, job.barren_deaths) == ("queued", 0)
    assert worker.attempts(job_id).state == "succeeded"
    bench.assert_finished_once(job_id, steps=4)


@pytest.mark.parametrize("how", ["newest damaged", "newest gone", "all damaged"])
def test_damaged_checkpoints_are_done_without(worker, monkeypatch, how):
    bench = worker.bench
    monkeypatch.setenv("GRAFT_TEST", "1")
    monkeypatch.setenv("GRAFT_CRASH_AT", "step:12")
    job_id = run(worker, {}, steps=15)
    older, newest = bench.checkpoints(job_id)
    for row in [older, newest] if how == "all damaged" else [newest]:
        path = bench.folder / "blobs" / "blobs" / row.state_sha256[:2] / row.state_sha256
        path.unlink() if how == "newest gone" else path.write_bytes(path.read_bytes()[:100] + b"x" * 64)
    worker.attempts(job_id)
    first = min(step for epoch, step in bench.steps(job_id) if epoch == 2)
    assert first == (1 if how == "all damaged" else 6)
    assert "checkpoint_unusable" in bench.kinds(job_id)
    bench.assert_finished_once(job_id, steps=15)


def test_a_training_file_whose_bytes_are_gone_fails_the_job(worker):
    bench = worker.bench
    job_id = bench.submit({"die_at": 77})
    bench.blobs.delete(training_blob(bench))
    job = worker.attempt(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "file_missing", "training_file")
    bench.blobs.put_bytes(json.dumps({"die_at": 77}).encode() + b"\n")


def test_an_adapter_to_start_from_whose_bytes_are_gone_fails_the_job(worker):
    job = worker.attempt(worker.bench.submit(init_adapter_sha256="a" * 64))
    assert (job.state, job.error_code, job.error_param) == ("failed", "init_adapter_missing", "peft.init_adapter")


def training_blob(bench):
    with bench.db.session() as session:
        return session.scalars(select(File.blob_sha256)).one()


def test_a_base_model_that_is_offered_no_more_fails_the_job(worker):
    job = worker.attempt(worker.bench.submit(base_model="forgotten"))
    assert (job.state, job.error_code, job.error_param) == ("failed", "base_model_unavailable", "model")


def test_a_bell_without_a_job_does_nothing(worker):
    seat = Seat(worker.shop, "worker")
    done = worker.bench.submit(steps=2)
    for bell in (done, done, "ftjob-unknown", "", "x" * 10_000, None, {"a": 1}, 7):
        seat.answer(bell)
    assert worker.bench.job(done).attempt == 1
    worker.bench.assert_finished_once(done, steps=2)


def test_a_bell_for_one_job_finds_another_that_waits(worker):
    seat = Seat(worker.shop, "worker")
    waiting = worker.bench.submit(steps=2)
    seat.answer("ftjob-unknown")
    worker.bench.assert_finished_once(waiting, steps=2)


def test_one_seat_does_one_job_at_a_time(worker):
    bench, most = worker.bench, [0, 0]
    guard = threading.Lock()

    class Counted(Crew):
        def run(self):
            with guard:
                most[0] += 1
                most[1] = max(most)
            super().run()
            with guard:
                most[0] -= 1

    ids = [bench.submit(steps=3, seed=seed) for seed in range(4)]
    seat = Seat(worker.shop, "worker", Counted)
    seat.start()
    bells = [threading.Thread(target=seat.answer, args=(job_id,)) for job_id in ids]
    for bell in bells:
        bell.start()
    for seed, job_id in enumerate(ids):
        bench.wait_for_end(job_id)
        bench.assert_finished_once(job_id, steps=3, seed=seed)
    seat.close()
    seat.join(60)
    for bell in bells:
        bell.join(60)
    assert most[1] == 1


def test_an_attempt_that_fails_in_an_unforeseen_way_leaves_the_seat_free(worker):
    class Broken(Crew):
        def run(self):
            raise ZeroDivisionError

    job_id = worker.bench.submit(steps=2)
    Seat(worker.shop, "worker", Broken).answer(job_id)
    worker.bench.set(job_id, lease_until=0)
    Seat(worker.shop, "worker").answer(job_id)
    worker.bench.assert_finished_once(job_id, steps=2)


def test_folders_of_jobs_that_ended_elsewhere_are_removed_at_the_start(worker):
    bench = worker.bench
    ended = run(worker, {"user_error": True})
    going_on = bench.submit()
    bench.set(going_on, run_after=2e9)
    for job_id in (ended, going_on, "ftjob-unknown"):
        (bench.folder / "jobs" / job_id / "x").mkdir(parents=True)
    seat = Seat(worker.shop, "worker")
    seat.start()
    wait_until(lambda: [path.name for path in (bench.folder / "jobs").iterdir()] == [going_on])
    seat.close()
    seat.join(60)


def test_a_rate_that_the_trainer_found_is_in_the_row_and_in_an_event(worker):
    search = search_around(8e-3, steps=5, batch_size=1)
    job_id = worker.bench.submit(rate_search=search.model_dump(mode="json"), learning_rate=8e-3)
    job = worker.attempt(job_id)
    assert (job.state, job.spec["learning_rate"]) == ("succeeded", 1e-3)
    assert job.spec["rate_search"]["found"]["candidates"][0] == {"rate": 1e-3, "losses": [1.0]}
    (told,) = [event for event in worker.bench.events(job_id) if event.kind == "rate_found"]
    data = told.event_data
    assert (data["rate"], data["share"], data["seconds"]) == (1e-3, 0.5, 0.25)
