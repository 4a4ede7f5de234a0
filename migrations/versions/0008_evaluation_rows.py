"""Conversations with the answer that somebody holds right."""

import sqlalchemy as sa
from alembic import op

revision = "0008_evaluation_rows"
down_revision = "0007_drain"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluation_rows",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("model", sa.String(255), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="fk_evaluation_rows_organization_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_evaluation_rows_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_evaluation_rows"),
    )
    op.create_index("evaluation_rows_by_project", "evaluation_rows", ["project_id", "created_at", "id"])


def downgrade() -> None:
    op.drop_table("evaluation_rows")
