"""Running front ends and engines, for tests to ask."""

import shutil

import pytest
from databases import postgres_server, postgres_url
from serving import running, serving

from core.records.database import Database
from core.settings import Settings

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A migrated SQLite file to copy from."""
    path = tmp_path_factory.mktemp("database") / "graft.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()  # the last to close folds the write-ahead log into the file
    return path


@pytest.fixture
def settings(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "graft.db")
    # Nothing listens at this socket: the bell is lost, and no request may mind.
    return Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock", max_upload_bytes=1 << 20)


@pytest.fixture
def service(settings):
    with serving(settings) as running_service:
        yield running_service


@pytest.fixture
def service_on_postgres(tmp_path, postgres_url):
    settings = Settings(
        data_dir=tmp_path,
        redis_url=f"unix://{tmp_path}/nobody.sock",
        database_url=postgres_url,
        max_upload_bytes=1 << 20,
    )
    database = Database(postgres_url)
    database.migrate()
    database.close()
    with serving(settings) as running_service:
        yield running_service


@pytest.fixture
def engine(service):
    with running(service) as fake:
        yield fake


@pytest.fixture
def second_engine(service):
    with running(service) as fake:
        yield fake


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch):
    monkeypatch.setattr("api.engine_directory.REST_S", (0.05, 0.2))
    monkeypatch.setattr("api.engine_client.LOOK_S", 0.02)
