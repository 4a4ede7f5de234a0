"""When a worker was asked to take no more work."""

import sqlalchemy as sa
from alembic import op

revision = "0007_drain"
down_revision = "0006_aliases"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("presences", sa.Column("drain_requested_at", sa.Float(53), nullable=True))


def downgrade() -> None:
    op.drop_column("presences", "drain_requested_at")
