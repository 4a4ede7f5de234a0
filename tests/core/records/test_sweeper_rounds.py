"""The sweeper's thread: it rings, outlives a database that is away, and leaves its office behind."""

import threading

from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from core.records import sweeper
from core.records.sweeper import Sweeper
from core.records.tables import Leader
from core.settings import Settings

SETTINGS = Settings(sweep_s=0.05)


class Bells:
    """Where bells arrive. Answers what a broker answers."""

    def __init__(self, *, is_up=True):
        self.rung, self.is_up, self.has_rung = [], is_up, threading.Event()

    def ring(self, job_id):
        self.rung.append(job_id)
        self.has_rung.set()
        return self.is_up


def swept(db, bells):
    sweeping = Sweeper(db, bells.ring, SETTINGS)
    sweeping.start()
    assert bells.has_rung.wait(60)
    return sweeping


def leaders(db):
    with db.session() as session:
        return session.scalars(select(Leader.owner)).all()


def test_a_job_never_rung_for_is_rung_for_once_and_the_office_is_given_up(db, make_job):
    job_id, bells = make_job(), Bells()
    sweeping = swept(db, bells)
    assert len(leaders(db)) == 1
    sweeping.stop()
    sweeping.stop()
    assert bells.rung == [job_id]
    assert leaders(db) == []


def test_the_next_sweeper_need_not_wait_for_the_term_of_one_that_stopped(db, make_job):
    make_job()
    swept(db, Bells()).stop()
    later, bells = make_job(), Bells()
    swept(db, bells).stop()
    assert bells.rung == [later]


def test_a_broker_that_is_away_is_asked_once_a_round(db, make_job):
    ids, bells = [make_job() for _ in range(3)], Bells(is_up=False)
    swept(db, bells).stop()
    assert bells.rung == ids[:1]


def test_a_database_that_is_away_costs_a_round_only(db, make_job, monkeypatch):
    job_id, bells, sweep, failures = make_job(), Bells(), sweeper.sweep, iter([True, True])

    def away_at_first(*args, **kwargs):
        if next(failures, False):
            raise OperationalError("SELECT", {}, Exception("gone"))
        return sweep(*args, **kwargs)

    monkeypatch.setattr(sweeper, "sweep", away_at_first)
    swept(db, bells).stop()
    assert bells.rung == [job_id]
