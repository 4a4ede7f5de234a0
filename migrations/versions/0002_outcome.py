"""What a finished run came to: the step that is served, the best one, and whether it stopped before its last."""

import sqlalchemy as sa
from alembic import op

revision = "0002_outcome"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("outcome", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "outcome")
