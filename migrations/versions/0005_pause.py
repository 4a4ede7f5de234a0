"""When a running job was asked to rest."""

import sqlalchemy as sa
from alembic import op

revision = "0005_pause"
down_revision = "0004_sessions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pause_requested_at", sa.Float(53), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "pause_requested_at")
