"""What a job was foretold to take, and what it took."""

import sqlalchemy as sa
from alembic import op

revision = "0003_estimate"
down_revision = "0002_outcome"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("estimate", "measured"):
        op.add_column("jobs", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    for name in ("measured", "estimate"):
        op.drop_column("jobs", name)
