"""Whether a row names a blob, without reading every row: asked of every blob, hour by hour."""

from alembic import op

revision = "0009_names_of_blobs"
down_revision = "0008_evaluation_rows"
branch_labels = None
depends_on = None

INDEXES = (
    ("files_by_blob", "files", "blob_sha256"),
    ("adapters_by_blob", "adapters", "blob_sha256"),
    ("checkpoints_by_state", "checkpoints", "state_sha256"),
    ("checkpoints_by_adapter", "checkpoints", "adapter_sha256"),
)


def upgrade() -> None:
    for name, table, column in INDEXES:
        op.create_index(name, table, [column])


def downgrade() -> None:
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
