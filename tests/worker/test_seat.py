"""A worker's seat: bells of all kinds, one job at a time, and folders that others left."""

import threading

from job_bench import wait_until

from worker.crew import Crew
from worker.seat import Seat


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
    worker.bench.expire(job_id)
    Seat(worker.shop, "worker").answer(job_id)
    worker.bench.assert_finished_once(job_id, steps=2)


def test_folders_of_jobs_that_ended_elsewhere_are_removed_at_the_start(worker):
    bench = worker.bench
    ended = worker.attempt_new({"user_error": True})
    going_on = bench.submit()
    bench.set(going_on, run_after=2e9)
    for job_id in (ended, going_on, "ftjob-unknown"):
        (bench.folder / "jobs" / job_id / "x").mkdir(parents=True)
    seat = Seat(worker.shop, "worker")
    seat.start()
    wait_until(lambda: [path.name for path in (bench.folder / "jobs").iterdir()] == [going_on])
    seat.close()
    seat.join(60)
