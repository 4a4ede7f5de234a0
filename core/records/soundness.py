"""Whether rows and blobs agree, and whether any row says what cannot be. It looks, and alters nothing.

A look takes a while and others go on writing meanwhile: what seems wrong is looked at a second time before it is told.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from core.blob import BlobStore, MissingBlob
from core.records.database import Database
from core.records.named import Naming, named, namings
from core.records.tables import JOB_STATES, TERMINAL_STATES, Adapter, File, Job, JobEvent


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. kind: missing, size or digest of a blob, else job, adapter, file or event; of: an id."""

    kind: str
    of: str
    found: str


def faults(db: Database, store: BlobStore) -> Iterator[Fault]:
    """Everything that is wrong, as it is found. Every blob that a row names is read through once."""
    yield from _of_blobs(db, store)
    yield from _of_rows(db)


def _of_blobs(db: Database, store: BlobStore) -> Iterator[Fault]:
    with db.session() as session:
        told = list(namings(session))
    judged = dict[str, tuple[str, int]]()
    for naming in told:
        if naming.sha256 not in judged:
            judged[naming.sha256] = _judged(store, naming.sha256)
        fault = _fault(naming, *judged[naming.sha256])
        if fault and _is_named_still(db, naming.sha256):
            yield fault


def _judged(store: BlobStore, sha256: str) -> tuple[str, int]:
    """What the content of a blob is in truth: its sha256, empty where it is missing, and its bytes."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in store.read(sha256):
            digest.update(piece)
            size += len(piece)
    except MissingBlob:
        return "", 0
    return digest.hexdigest(), size


def _fault(naming: Naming, sha256: str, size_bytes: int) -> Fault | None:
    of = f"{naming.kind} {naming.row_id}"
    if not sha256:
        return Fault("missing", of, f"blob {naming.sha256} is not in the store")
    if sha256 != naming.sha256:
        return Fault("digest", of, f"blob {naming.sha256} holds {size_bytes} bytes whose sha256 is {sha256}")
    if naming.size_bytes is not None and size_bytes != naming.size_bytes:
        return Fault("size", of, f"the row says {naming.size_bytes} bytes, blob {sha256} holds {size_bytes}")
    return None


def _is_named_still(db: Database, sha256: str) -> bool:
    with db.session() as session:
        return bool(named(session, [sha256]))


def _of_rows(db: Database) -> Iterator[Fault]:
    for kind, statement, said in _impossible():
        with db.session() as session:
            found = list(session.scalars(statement))
        with db.session() as session:
            yield from (Fault(kind, of, said) for of in found if _is_so_still(session, statement, of))


def _is_so_still(session: Session, statement: Select[str], of: str) -> bool:
    column: ColumnElement[str] = statement.selected_columns[0]
    return session.scalars(statement.where(column == of).limit(1)).one_or_none() is not None


def _impossible() -> Iterator[tuple[str, Select[str], str]]:
    """Rows that cannot be: what they are, their ids, and what is wrong with them."""
    is_running, is_over = Job.state == "running", Job.state.in_(TERMINAL_STATES)
    has_no_lease = or_(Job.lease_owner.is_(None), Job.lease_until.is_(None), Job.lease_epoch < 1, Job.attempt < 1)
    has_lease = or_(Job.lease_owner.is_not(None), Job.lease_until.is_not(None))
    adapters = select(func.count()).where(Adapter.job_id == Job.id).correlate(Job).scalar_subquery()
    conditions: dict[str, ColumnElement[bool]] = {
        f"its state is none of {', '.join(JOB_STATES)}": Job.state.not_in(JOB_STATES),
        "it is running, and nobody holds it": and_(is_running, has_no_lease),
        "it is not running, and is held all the same": and_(~is_running, has_lease),
        "it has ended, and does not say when": and_(is_over, Job.finished_at.is_(None)),
        "it has not ended, and says when it did": and_(~is_over, Job.finished_at.is_not(None)),
        "it has succeeded, and has no adapter": and_(Job.state == "succeeded", adapters == 0),
        "it has not succeeded, and has an adapter": and_(Job.state != "succeeded", adapters > 0),
        "it has failed, and does not say why": and_(Job.state == "failed", Job.error_code.is_(None)),
        "its step lies beyond its last": Job.step > Job.total_steps,
    }
    for said, condition in conditions.items():
        yield "job", select(Job.id).where(condition), said
    yield from _of_others()
    yield from _of_events()


def _of_others() -> Iterator[tuple[str, Select[str], str]]:
    """Rows that point to another project's."""
    stray = select(Adapter.id).join(Job, Job.id == Adapter.job_id).where(Job.project_id != Adapter.project_id)
    yield "adapter", stray, "its job is another project's"
    for column, name in ((Job.training_file_id, "training file"), (Job.validation_file_id, "validation file")):
        foreign = select(Job.id).join(File, File.id == column).where(File.project_id != Job.project_id)
        yield "job", foreign, f"its {name} is another project's"


def _of_events() -> Iterator[tuple[str, Select[str], str]]:
    """Histories that cannot be. The fence itself writes as the attempt that it turned away."""
    mine = and_(JobEvent.job_id == Job.id, JobEvent.kind != "fenced")
    ahead = select(literal(1)).where(mine, JobEvent.lease_epoch > Job.lease_epoch).correlate(Job).exists()
    yield "job", select(Job.id).where(ahead), "an event is of an attempt that has not been"
    ends = select(func.count()).where(mine, JobEvent.kind.in_(TERMINAL_STATES)).correlate(Job).scalar_subquery()
    yield "job", select(Job.id).where(ends > 1), "it has ended more than once"
    later = aliased(JobEvent)
    overtaken = and_(later.job_id == JobEvent.job_id, later.id > JobEvent.id, later.lease_epoch < JobEvent.lease_epoch)
    stale = select(JobEvent.job_id).join(later, and_(overtaken, later.kind != "fenced"))
    stale = stale.where(JobEvent.kind == "claimed").distinct()
    yield "job", stale, "a superseded attempt wrote after the one that took over"
