"""Which blobs the rows name, so that their bytes must stay. Knows no store.

Named are: the bytes of files and adapters that are not deleted, and of files that have not expired; what checkpoints
keep of a run's state and of its adapter; and all that a job which has not ended is yet to read, whatever became of its
file or of the model that it starts from.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, null, or_, select
from sqlalchemy.orm import Session, aliased

from core.records.database import now_s
from core.records.tables import TERMINAL_STATES, Adapter, Checkpoint, File, Job

MANY = 1000  # rows in memory at once


@dataclass(frozen=True)
class Naming:
    """A row that names a blob. kind: file, adapter, state, checkpoint or start; size_bytes: None where it says none."""

    kind: str
    sha256: str
    row_id: str
    size_bytes: int | None


def named(session: Session, digests: Collection[str]) -> set[str]:
    """Of these contents, at most as many as a query may ask after, those that a row names now."""
    found = set[str]()
    for _, statement in _ways():
        sha256: ColumnElement[str] = statement.selected_columns[0]
        found.update(session.scalars(statement.where(sha256.in_(digests))))
    return found


def namings(session: Session) -> Iterator[Naming]:
    """Every row that names a blob."""
    for kind, statement in _ways():
        for sha256, row_id, size_bytes in session.execute(statement.execution_options(yield_per=MANY)):
            yield Naming(kind, sha256, row_id, size_bytes)


def _ways() -> Iterator[tuple[str, Select[*tuple[Any, ...]]]]:
    """For each way of naming a blob, its kind and its rows: sha256, id, size."""
    reader = aliased(Job)
    reads = or_(reader.training_file_id == File.id, reader.validation_file_id == File.id)
    is_yet_read = select(reader.id).where(reader.state.not_in(TERMINAL_STATES), reads).exists()
    is_present = and_(File.deleted_at.is_(None), or_(File.expires_at.is_(None), File.expires_at > now_s()))
    yield "file", select(File.blob_sha256, File.id, File.size_bytes).where(or_(is_present, is_yet_read))
    adapters = select(Adapter.blob_sha256, Adapter.id, Adapter.size_bytes)
    yield "adapter", adapters.where(Adapter.deleted_at.is_(None))
    states = select(Checkpoint.state_sha256, Checkpoint.id, Checkpoint.state_bytes)
    yield "state", states.where(Checkpoint.state_sha256.is_not(None))
    kept = select(Checkpoint.adapter_sha256, Checkpoint.id, Checkpoint.adapter_bytes)
    yield "checkpoint", kept.where(Checkpoint.adapter_sha256.is_not(None))
    for name in ("init_adapter_sha256", "continue_from_sha256"):
        start = Job.spec[name].as_string()
        starts = select(start, Job.id, null())
        yield "start", starts.where(Job.state.not_in(TERMINAL_STATES), start.is_not(None))
