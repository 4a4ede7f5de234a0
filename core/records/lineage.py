"""Where an adapter comes from, and what came of it: datasets → job → adapter, and from adapter to job where it goes on.

Reads only what is the account's own. What was deleted since still stands in the graph, as deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from core.records.scope import Account, of
from core.records.tables import Adapter, Checkpoint, File, Job

MOST = 200  # nodes of one graph

Kind = Literal["adapter", "checkpoint", "job", "file", "missing"]
Bond = Literal["trained_on", "validated_on", "made", "continued_from", "started_from", "retry_of"]


@dataclass(frozen=True)
class Node:
    """One thing. id: its own; of a missing model, its name. state: of a job."""

    id: str
    kind: Kind
    name: str
    created_at: float | None = None
    state: str | None = None
    is_deleted: bool = False


@dataclass(frozen=True)
class Edge:
    """source came before target: a file was what a job was trained on, a job made an adapter."""

    source: str
    target: str
    bond: Bond


@dataclass
class Lineage:
    """A graph without circles. Whole unless is_cut."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    is_cut: bool = False


def lineage(session: Session, account: Account, adapter: Adapter) -> Lineage:
    """All that went before the account's adapter, and the jobs and adapters that went on from it, and from those."""
    walk = _Walk(session, account)
    walk.adapter(adapter)
    walk.go()
    later = [adapter]
    while later:
        source = later.pop(0)
        for job in session.scalars(walk.going_on_from(source).limit(MOST)):
            if job.id not in walk.found.nodes:
                walk.job(job, {source.blob_sha256: source.id})
                later += walk.made_by(job)
    walk.go()
    return walk.found


def lineage_of_job(session: Session, account: Account, job: Job) -> Lineage:
    """The same of the account's job: what it was made from, its adapter, the jobs that did it again or went on."""
    walk = _Walk(session, account)
    walk.job(job, {})
    walk.made_by(job)
    walk.go()
    adapter = session.scalars(select(Adapter).where(*of(Adapter, account), Adapter.job_id == job.id)).one_or_none()
    known = {adapter.blob_sha256: adapter.id} if adapter else {}
    for later in session.scalars(walk.later_than(job, adapter).limit(MOST)):
        if later.id not in walk.found.nodes:
            walk.job(later, known)
            walk.made_by(later)
    walk.go()
    return walk.found


class _Walk:
    """Through what an account may see, each thing once."""

    def __init__(self, session: Session, account: Account) -> None:
        self._session, self._account = session, account
        self.found = Lineage()
        self._jobs: list[str] = []  # to be looked at

    def go(self) -> None:
        """Look at all jobs that were met, and at those met by that."""
        while self._jobs:
            job = self._session.get(Job, self._jobs.pop())
            if job is not None and job.id not in self.found.nodes:
                self.job(job, {})

    def adapter(self, row: Adapter) -> None:
        """An adapter and what made it."""
        self._add(Node(row.id, "adapter", row.name, row.created_at, is_deleted=row.deleted_at is not None))
        if row.job_id is not None:
            self._tie(row.job_id, row.id, "made")
            self._jobs.append(row.job_id)

    def job(self, row: Job, known: dict[str, str]) -> None:
        """A job, its files and what it went on from. known: by digest, the node of an adapter that is meant."""
        if not self._add(Node(row.id, "job", row.suffix or row.id, row.created_at, state=row.state)):
            return
        self._file(row, row.training_file_id, "trained_on")
        self._file(row, row.validation_file_id, "validated_on")
        self._model(row, row.spec.get("continue_from"), row.spec.get("continue_from_sha256"), "continued_from", known)
        started = row.spec.get("method", {}).get("init_adapter")
        self._model(row, started, row.spec.get("init_adapter_sha256"), "started_from", known)
        if row.retry_of is not None:
            self._tie(row.retry_of, row.id, "retry_of")
            self._jobs.append(row.retry_of)

    def made_by(self, job: Job) -> Sequence[Adapter]:
        """The adapter of a job, if it has one."""
        mine = select(Adapter).where(*of(Adapter, self._account), Adapter.job_id == job.id)
        rows = self._session.scalars(mine).all()
        for row in rows:
            self.adapter(row)
        return rows

    def going_on_from(self, adapter: Adapter) -> Select[Job]:
        """The account's jobs that went on from an adapter or from a checkpoint of its job, or started from it."""
        names = (Job.spec["continue_from_sha256"].as_string(), Job.spec["init_adapter_sha256"].as_string())
        digests = [adapter.blob_sha256, *self._digests_of(adapter.job_id)]
        meant = or_(*(name.in_(digests) for name in names))
        return select(Job).where(*of(Job, self._account), meant).order_by(Job.created_at, Job.id)

    def later_than(self, job: Job, adapter: Adapter | None) -> Select[Job]:
        """The account's jobs that did a job again, or went on from one of its checkpoints or from its adapter."""
        digests = self._digests_of(job.id) + ([adapter.blob_sha256] if adapter else [])
        names = (Job.spec["continue_from_sha256"].as_string(), Job.spec["init_adapter_sha256"].as_string())
        came_of_it = or_(Job.retry_of == job.id, *(name.in_(digests) for name in names))
        return select(Job).where(*of(Job, self._account), came_of_it).order_by(Job.created_at, Job.id)

    def _digests_of(self, job_id: str | None) -> list[str]:
        kept = select(Checkpoint.adapter_sha256).where(Checkpoint.job_id == job_id)
        return [digest for digest in self._session.scalars(kept) if digest]

    def _file(self, job: Job, file_id: str | None, bond: Bond) -> None:
        row = self._session.get(File, file_id) if file_id else None
        if row is not None:
            self._add(Node(row.id, "file", row.filename, row.created_at, is_deleted=row.deleted_at is not None))
            self._tie(row.id, job.id, bond)

    def _model(self, job: Job, name: str | None, sha256: str | None, bond: Bond, known: dict[str, str]) -> None:
        if name is None:
            return
        source = known.get(sha256 or "")
        if source is None:
            source = self._adapter_of(name, sha256) or self._checkpoint_of(name, sha256)
        if source is None:
            source = name
            self._add(Node(name, "missing", name, is_deleted=True))
        self._tie(source, job.id, bond)

    def _adapter_of(self, name: str, sha256: str | None) -> str | None:
        mine = select(Adapter).where(*of(Adapter, self._account), Adapter.blob_sha256 == sha256)
        rows = self._session.scalars(mine.order_by(Adapter.created_at, Adapter.id)).all()
        row = next((row for row in rows if name in (row.name, row.id)), None)
        if row is not None:
            self.adapter(row)
        return row.id if row else None

    def _checkpoint_of(self, name: str, sha256: str | None) -> str | None:
        mine = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(*of(Job, self._account))
        named = or_(Checkpoint.model_name == name, Checkpoint.id == name)
        row = self._session.scalars(mine.where(named, Checkpoint.adapter_sha256 == sha256)).one_or_none()
        if row is None:
            return None
        self._add(Node(row.id, "checkpoint", row.model_name or row.id, row.created_at))
        self._tie(row.job_id, row.id, "made")
        self._jobs.append(row.job_id)
        return row.id

    def _add(self, node: Node) -> bool:
        if node.id in self.found.nodes:
            return False
        if len(self.found.nodes) >= MOST:
            self.found.is_cut = True
            return False
        self.found.nodes[node.id] = node
        return True

    def _tie(self, source: str, target: str, bond: Bond) -> None:
        edge = Edge(source, target, bond)
        if edge not in self.found.edges:
            self.found.edges.append(edge)
