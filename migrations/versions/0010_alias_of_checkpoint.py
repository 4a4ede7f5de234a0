"""An alias may mean a checkpoint of its version's job. Null, as in every row there was, means the version itself."""

import sqlalchemy as sa
from alembic import op

revision = "0010_alias_of_checkpoint"
down_revision = "0009_names_of_blobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("adapter_aliases") as table:
        table.add_column(sa.Column("checkpoint_id", sa.String(64), nullable=True))
        table.create_foreign_key("fk_adapter_aliases_checkpoint_id", "checkpoints", ["checkpoint_id"], ["id"])


def downgrade() -> None:
    """An alias of a checkpoint means its version again."""
    with op.batch_alter_table("adapter_aliases") as table:
        table.drop_constraint("fk_adapter_aliases_checkpoint_id", type_="foreignkey")
        table.drop_column("checkpoint_id")
