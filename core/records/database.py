"""The database: one door for SQLite and Postgres, with one clock, the database's own. Knows no table."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import URL, Connection, Dialect, Double, Engine, create_engine, event, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

MIGRATIONS = Path(__file__).parents[2] / "migrations"
BUSY_S = 10  # how long a SQLite writer waits for the one before it
MIGRATION_WAIT_S = 120  # how long a process waits for another one that migrates
MIGRATION_LOCK = 0x67726166  # "graf": the advisory lock of Postgres that a migration holds
POSTGRES_OPTIONS = "-c statement_timeout=10s -c lock_timeout=3s -c idle_in_transaction_session_timeout=15s"


class now_s(FunctionElement[float]):  # noqa: N801  # reads as the SQL function that it is
    """The database's clock: seconds since 1970 as a double. Every comparison of times is made with it."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(_element: now_s, _compiler: SQLCompiler, **_: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgres(_element: now_s, _compiler: SQLCompiler, **_: object) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


def clock(session: Session) -> float:
    """The database's clock, read now."""
    return session.execute(select(now_s())).scalar_one()


def insert_or(session: Session, table: type[Any]) -> "postgresql.Insert | sqlite.Insert":
    """An INSERT of the session's dialect, which both have on_conflict_do_nothing and on_conflict_do_update."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


class Database:
    """Connections to one database. url: sqlite:///file or postgresql://…; ValueError for any other."""

    def __init__(self, url: str) -> None:
        self.url = _understood(url)
        self.engine = _sqlite_engine(self.url) if self.url.drivername == "sqlite" else _postgres_engine(self.url)
        self._readers = self.engine.execution_options(graft_writes=False, postgresql_readonly=True)
        self._writers = self.engine.execution_options(graft_writes=True)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session that only reads; a write in it is refused by the database. Its rows stay usable afterwards."""
        with Session(self._readers, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back by an exception.

        On SQLite it holds the one write lock from its start, so what it reads cannot change under it.
        """
        with Session(self._writers, expire_on_commit=False) as session, session.begin():
            session.connection()
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to a revision. Safe to call from several processes at once; the others wait."""
        with self.engine.execution_options(graft_migrates=True).connect() as connection, connection.begin():
            if self.engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_WAIT_S}s'")
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            _run_alembic(connection, revision)
            connection.detach()  # closed afterwards, so that no other use inherits its foreign-key setting

    def close(self) -> None:
        """Close every connection of the pool."""
        self.engine.dispose()


def _understood(url: str) -> URL:
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed.set(drivername="sqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+psycopg")
    raise ValueError(f"database URL {parsed.render_as_string()!r} is neither sqlite:///file nor postgresql://…")


def _postgres_engine(url: URL) -> Engine:
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=10,
        connect_args={"options": POSTGRES_OPTIONS, "connect_timeout": 5},
    )


def _sqlite_engine(url: URL) -> Engine:
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=10, max_overflow=10, connect_args={"timeout": BUSY_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, never by the driver
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            # Two processes that turn a new file to WAL at once: here SQLite does not wait by itself.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("graft_migrates"):
        # Rebuilding a table drops it, which foreign keys would forbid; they are checked before the commit instead.
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {MIGRATION_WAIT_S * 1000}")
    writes = options.get("graft_writes", True)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _run_alembic(connection: Connection, revision: str) -> None:
    if not (MIGRATIONS / "env.py").is_file():
        raise ValueError(f"no migrations at {MIGRATIONS}: run from a checkout that has them")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    if revision == "base" or revision.startswith("-"):
        alembic.command.downgrade(config, revision)
    else:
        alembic.command.upgrade(config, revision)
    _check_foreign_keys(connection, connection.dialect)


def _check_foreign_keys(connection: Connection, dialect: Dialect) -> None:
    if dialect.name == "sqlite" and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()):
        raise ValueError(f"the migration leaves rows without what they refer to: {broken[:5]}")
