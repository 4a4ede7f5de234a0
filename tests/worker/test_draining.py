"""A trainer that an administrator drains: its job goes on elsewhere, and it hears no bell any more."""

import sys
from pathlib import Path

import pytest
from job_bench import JobBench, wait_until
from kombu.exceptions import OperationalError
from sqlalchemy import select

from core.records import presences
from core.records.tables import Presence
from core.records.workers import ask_to_drain, living


class Control:
    """What Celery is told over the network; with a broker that is away where is_away."""

    def __init__(self, *, is_away):
        self.is_away, self.told = is_away, []

    def cancel_consumer(self, queue, destination):
        if self.is_away:
            raise OperationalError
        self.told.append((queue, destination))


class Celery:
    """An application without a broker: bells sound nowhere, so that jobs are found by looking."""

    def __init__(self, control):
        self.control = control

    def send_task(self, *_args, **_named):
        raise OperationalError


@pytest.fixture
def station_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path))  # the module reads the settings when it is imported
    sys.modules.pop("worker.celery_app", None)
    from worker.celery_app import Station  # noqa: PLC0415  # not before the settings are in place

    monkeypatch.setattr("worker.presence.BEAT_S", 0.05)
    bench, made = JobBench(tmp_path), []

    def make(control):
        made.append(Station(bench.settings, Celery(control), "trainer@here"))
        made[-1].start()
        return made[-1], bench

    yield make
    for station in made:
        station.stop()
    bench.close()
    sys.modules.pop("worker.celery_app", None)


def drain(bench):
    with bench.db.session() as session:
        trainer = session.scalars(select(Presence)).one()
    with bench.db.writing() as session:
        assert ask_to_drain(session, bench.account, trainer.id)


@pytest.mark.parametrize("is_away", [False, True], ids=["", "without a broker"])
def test_a_drained_trainer_gives_its_job_back_and_stays_idle(station_of, is_away):
    control = Control(is_away=is_away)
    station, bench = station_of(control)
    job_id = bench.submit(steps=100_000, step_s=0.05)
    bench.wait_for_step(job_id, 2)
    drain(bench)
    job = bench.wait_for(job_id, "queued")
    assert (job.attempt, job.preemptions) == (0, 1)
    assert control.told == ([] if is_away else [("train", ["trainer@here"])])

    def told():
        with bench.db.session() as session:
            (one,) = living(session, bench.account)
        return one if not one.presence.is_ready else None

    trainer = wait_until(told)
    assert (trainer.presence.details["is_leaving"], trainer.n_jobs) == (True, 0)
    station.seat.answer(job_id)
    assert bench.job(job_id).state == "queued"
    bench.cancel(job_id)


def test_a_trainer_that_nobody_drains_goes_on(station_of):
    _, bench = station_of(Control(is_away=False))
    job_id = bench.submit(steps=5)
    assert bench.wait_for_end(job_id).state == "succeeded"
    with bench.db.session() as session:
        assert presences.alive(session, "trainer")[0].is_ready
