"""How Alembic reaches the database: through core.records.database, whether called by Database.migrate or by hand."""

from alembic import context
from sqlalchemy import Connection

from core.records.database import Database
from core.records.tables import Table
from core.settings import Settings


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",
        # Both databases roll DDL back. One transaction holds all revisions, or none.
        transactional_ddl=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    database = Database(Settings().database)
    with database.engine.execution_options(graft_migrates=True).connect() as own, own.begin():
        _run(own)
    database.close()
