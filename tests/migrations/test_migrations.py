import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from core.records.database import Database
from core.records.tables import Table

MIGRATE = "import sys; from core.records.database import Database; db = Database(sys.argv[1]); db.migrate(); db.close()"


@pytest.fixture
def database(empty_database_url):
    made = Database(empty_database_url)
    yield made
    made.close()


def tables(database):
    with database.engine.connect() as connection:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}


def differences(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, Table.metadata)


def test_the_migrations_lead_to_the_tables_of_the_code(database):
    database.migrate()
    assert tables(database) == set(Table.metadata.tables)
    assert differences(database) == []


def test_the_comparison_sees_a_column_that_the_code_does_not_have(database):
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN odd INTEGER"))
    assert [difference[0] for difference in differences(database)] == ["remove_column"]


def test_down_and_up_again(database):
    database.migrate()
    database.migrate("base")
    assert tables(database) == set()
    database.migrate()
    assert differences(database) == []


def test_migrating_again_keeps_every_row(database):
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO organizations VALUES ('org-a', 'a', 'A', 1.0)"))
    database.migrate()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT slug FROM organizations")).scalars().all() == ["a"]


def test_processes_that_migrate_at_once_do_it_once(empty_database_url):
    children = [subprocess.Popen([sys.executable, "-c", MIGRATE, empty_database_url]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    database = Database(empty_database_url)
    assert differences(database) == []
    database.close()


def test_a_migration_that_fails_leaves_nothing(database, monkeypatch):
    def fail(*_):
        raise ValueError("the migration leaves rows without what they refer to")

    monkeypatch.setattr("core.records.database._check_foreign_keys", fail)
    with pytest.raises(ValueError, match="leaves rows"):
        database.migrate()
    assert tables(database) == set()


def test_without_its_migrations_a_database_is_not_touched(database, monkeypatch, tmp_path):
    monkeypatch.setattr("core.records.database.MIGRATIONS", tmp_path)
    with pytest.raises(ValueError, match="no migrations at"):
        database.migrate()
    assert tables(database) == set()


def test_alembic_by_hand_reaches_the_same_database(empty_database_url):
    environment = {"GRAFT_DATABASE_URL": empty_database_url, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    database = Database(empty_database_url)
    assert differences(database) == []
    database.close()


def test_adapters_that_are_there_are_numbered_by_age_in_their_project_and_suffix(database):
    database.migrate("0005_pause")
    rows = [("a", "p", "bot", 3), ("b", "p", "bot", 1), ("c", "q", "bot", 2), ("d", "p", "", 4), ("e", "p", "tax", 5)]
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO organizations VALUES ('o', 'o', 'O', 1.0)"))
        for project in "pq":
            connection.execute(text("INSERT INTO projects VALUES (:p, 'o', 'P', 1.0)"), {"p": project})
        for name, project, suffix, age in rows:
            columns = "id, name, base_model, peft_type, blob_sha256, size_bytes, details, created_at, organization_id"
            values = "(:id, :name, 'tiny', 'LORA', 'x', 1, '{}', :age, 'o', :project)"
            given = {"id": name, "name": f"ft:tiny:o:{suffix}:{name}", "age": float(age), "project": project}
            connection.execute(text(f"INSERT INTO adapters ({columns}, project_id) VALUES {values}"), given)
    database.migrate()
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT id, family, version FROM adapters ORDER BY id")).all()
    numbers = [("a", "bot", 2), ("b", "bot", 1), ("c", "bot", 1), ("d", None, None), ("e", "tax", 1)]
    assert [tuple(row) for row in found] == numbers
