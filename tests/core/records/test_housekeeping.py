"""The housekeeper: one round an hour among all processes, as the settings say, and none of its troubles ends it."""

import os
import time

import pytest
from pydantic import ValidationError
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from core.blob import place
from core.blobs import FolderStore
from core.records import housekeeping
from core.records.collecting import Collected
from core.records.housekeeping import Housekeeper, Kept
from core.records.tables import Leader
from core.settings import Settings

DAY = 86_400.0


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


@pytest.fixture
def keeper(db, store):
    def make(**more):
        return Housekeeper(db, store, Settings(), **more)

    return make


def an_hour_later(db):
    with db.writing() as session:
        session.execute(update(Leader).values(until=1.0))


def old_blob(store):
    blob = store.put_bytes(b"nobody's")
    os.utime(store.root / place(blob.sha256), (1, 1))
    return blob


def test_one_process_keeps_house_once_an_hour(db, store, keeper):
    old_blob(store)
    first, second = keeper(), keeper()
    assert first.round() == Kept(0, Collected(aside=1, aside_bytes=8))
    assert (first.round(), second.round()) == (None, None)
    an_hour_later(db)
    assert second.round() == Kept(0, Collected())


def test_histories_go_after_so_many_days_and_never_where_the_setting_is_0(db, store, machine, make_job):
    job_id = make_job()
    machine.set(job_id, state="cancelled", finished_at=1.0)
    assert Housekeeper(db, store, Settings(event_retention_days=0)).round() == Kept(0, Collected())
    an_hour_later(db)
    assert Housekeeper(db, store, Settings()).round() == Kept(1, Collected())


def test_its_thread_tells_what_it_did_and_stops(store, keeper):
    old_blob(store)
    told = []
    running = keeper(tell=told.append)
    running.start()
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    running.stop()
    running.stop()
    assert told == [Kept(0, Collected(aside=1, aside_bytes=8))]


def test_a_database_that_is_away_costs_a_look_and_not_the_housekeeper(keeper, monkeypatch):
    monkeypatch.setattr(housekeeping, "LOOK_S", 0.01)
    take, failures, told = housekeeping.offices.take, iter([True, True]), []

    def away_at_first(*args, **kwargs):
        if next(failures, False):
            raise OperationalError("", {}, Exception())
        return take(*args, **kwargs)

    monkeypatch.setattr(housekeeping.offices, "take", away_at_first)
    running = keeper(tell=told.append)
    running.start()
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    running.stop()
    assert told == [Kept(0, Collected())]


@pytest.mark.parametrize("hours", [0, -1])
def test_a_retention_that_would_remove_bytes_under_their_writer_is_refused(hours):
    with pytest.raises(ValidationError, match=f"GRAFT_DELETED_RETENTION_HOURS {hours} is less than 1: bytes that are"):
        Settings(deleted_retention_hours=hours)


def test_days_of_events_are_none_or_more():
    assert Settings(event_retention_days=0).event_retention_days == 0
    with pytest.raises(ValidationError):
        Settings(event_retention_days=-1)
