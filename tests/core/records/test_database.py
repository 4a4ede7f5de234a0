import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

from core.records.database import Database, clock
from core.records.tables import Organization


def organization(slug):
    return {"id": f"org-{slug}", "slug": slug, "name": slug, "created_at": 1.0}


def test_the_clock_is_in_seconds_since_1970_and_moves(db):
    with db.session() as session:
        began_at = time.time()
        first = clock(session)
        time.sleep(0.01)
        second = clock(session)
        ended_at = time.time()
    assert began_at - 0.01 < first < second - 0.005 < ended_at + 0.01  # the same machine's, in milliseconds


def test_a_reading_session_cannot_write(db):
    with db.session() as session, pytest.raises(DBAPIError):
        session.execute(insert(Organization).values(**organization("a")))
    with db.writing() as session:  # and what it left behind does not keep the next one from writing
        session.execute(insert(Organization).values(**organization("a")))


def test_an_exception_undoes_the_transaction(db):
    def write_and_fail():
        with db.writing() as session:
            session.execute(insert(Organization).values(**organization("a")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with db.session() as session:
        assert session.scalar(select(func.count()).select_from(Organization)) == 0


def test_rows_stay_usable_after_their_session(db):
    with db.writing() as session:
        row = Organization(**organization("a"))
        session.add(row)
    with db.session() as session:
        read = session.get_one(Organization, "org-a")
    assert (row.slug, read.slug) == ("a", "a")


def test_writers_wait_for_each_other_and_lose_no_update(db):
    with db.writing() as session:
        session.execute(insert(Organization).values(**organization("a") | {"created_at": 0.0}))

    def add_one(_):
        with db.writing() as session:
            row = session.scalars(select(Organization).with_for_update()).one()
            row.created_at += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(40)))
    with db.session() as session:
        assert session.get_one(Organization, "org-a").created_at == 40


def test_sqlite_is_set_up_for_many_processes(tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'new' / 'graft.db'}")
    with db.session() as session:
        found = {
            name: session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    db.close()
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 10_000}


def test_postgres_gives_up_on_what_takes_too_long(postgres_url):
    db = Database(postgres_url)
    with db.session() as session:
        found = [
            session.scalar(text(f"SHOW {name}"))
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    db.close()
    assert found == ["10s", "3s", "15s"]


def test_a_lost_connection_is_replaced(postgres_url):
    db = Database(postgres_url)
    with db.session() as session:
        session.execute(text("SELECT 1"))
    with db.engine.connect() as killer:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        killer.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
    with db.session() as session:
        assert session.scalar(text("SELECT 1")) == 1
    db.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_a_database_that_cannot_be_shared_is_refused(url):
    with pytest.raises(ValueError, match="neither sqlite:///file nor postgresql"):
        Database(url)


def test_an_error_does_not_show_the_password():
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is what is looked at
        Database("mysql://graft:hunter2@host/db")
    assert "hunter2" not in str(error.value)


def test_rows_without_what_they_refer_to_are_refused(db):
    with pytest.raises(DBAPIError), db.writing() as session:
        session.execute(text("INSERT INTO projects VALUES ('p', 'no such organisation', 'name', 1.0)"))
