"""Versions of adapters, and the aliases that point to one of them."""

import sqlalchemy as sa
from alembic import op

revision = "0006_aliases"
down_revision = "0005_pause"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adapters", sa.Column("family", sa.String(64), nullable=True))
    op.add_column("adapters", sa.Column("version", sa.BigInteger(), nullable=True))
    _number_those_there()
    op.create_index("adapters_by_version", "adapters", ["project_id", "family", "version"], unique=True)
    op.create_table(
        "adapter_aliases",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(32), nullable=False),
        sa.Column("adapter_id", sa.String(64), nullable=False),
        sa.Column("moved_at", sa.Float(53), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_adapter_aliases_adapter_id"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="fk_adapter_aliases_organization_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_adapter_aliases_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_aliases"),
        sa.UniqueConstraint("project_id", "family", "alias", name="one_alias_of_a_name"),
    )


def downgrade() -> None:
    op.drop_table("adapter_aliases")
    op.drop_index("adapters_by_version", "adapters")
    for name in ("version", "family"):
        op.drop_column("adapters", name)


def _number_those_there() -> None:
    """Of each project and suffix in the order in which they were made, the deleted ones too: a number is given once."""
    adapters = sa.table(
        "adapters",
        *(sa.column(name) for name in ("id", "project_id", "name", "created_at", "family", "version")),
    )
    connection, numbers = op.get_bind(), dict[tuple[str, str], int]()
    for row in connection.execute(sa.select(adapters).order_by(adapters.c.created_at, adapters.c.id)).all():
        family = row.name.split(":")[-2] if row.name.count(":") > 1 else ""
        if family:
            numbers[row.project_id, family] = numbers.get((row.project_id, family), 0) + 1
            given = {"family": family, "version": numbers[row.project_id, family]}
            connection.execute(sa.update(adapters).where(adapters.c.id == row.id).values(**given))
