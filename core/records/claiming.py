"""Who may take a job, and which: the move T2 of the job machine. A claim is one guarded UPDATE of one row."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, false, func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from core.records.database import Database, now_s
from core.records.events import Event, append
from core.records.leases import POISON_DEATHS, Claim
from core.records.tables import Job
from core.specs.training import TrainSpec


@dataclass(frozen=True)
class Kin:
    """What jobs that train in step have in common."""

    base_model: str
    base_precision: str
    activation_checkpointing: bool = False
    activation_offload: bool = False


def claim(db: Database, *, owner: str, lease_s: float, job_id: str | None = None) -> Claim | None:
    """T2. Take this job, or the oldest that may run now; None where there is nothing to take.

    Takes a running job whose lease is over, unless it must end (sweep does that), before any queued one.
    """
    wanted = () if job_id is None else (Job.id == job_id,)
    with db.writing() as session:
        for kind in (_is_orphaned(), _is_waiting()):
            if held := _taken(session, _taking(kind, *wanted, owner=owner, lease_s=lease_s), owner):
                return held
    return None


def claim_kin(db: Database, *, owner: str, lease_s: float, kin: Kin) -> Claim | None:
    """T2 for a trainer that is at work: take the next job if it may join in, else none.

    The next is the one that claim() would take. No younger one is let in before it, or it might never have its turn.
    """
    with db.session() as session:
        if session.scalars(select(Job.id).where(claimable()).limit(1)).first() is None:
            return None  # asked every second: without a writer's lock
    with db.writing() as session:
        for kind in (_is_orphaned(), _is_waiting()):
            taking = _taking(kind, owner=owner, lease_s=lease_s).where(_may_join(kin))
            if held := _taken(session, taking, owner):
                return held
            if session.scalars(select(Job.id).where(kind).limit(1)).first() is not None:
                return None
    return None


def _taken(session: Session, taking: ReturningUpdate[str, int, int, int, int], owner: str) -> Claim | None:
    row = session.execute(taking).one_or_none()
    if row is None:
        return None
    message = f"Attempt {row.attempt} of {row.max_attempts} started"
    data = {"attempt": row.attempt, "trainer": trainer_of(owner)}
    append(session, row.id, row.lease_epoch, [Event("claimed", message, data=data)])
    is_alone = row.attempt >= row.max_attempts or row.barren_deaths > 0
    return Claim(row.id, row.lease_epoch, owner, attempt=row.attempt, is_alone=is_alone)


def trainer_of(owner: str) -> str:
    """A name for whoever claims, the same each time, that tells customers nothing of the machine."""
    return hashlib.sha256(owner.encode()).hexdigest()[:12]


def _may_join(kin: Kin) -> ColumnElement[bool]:
    """Whether the next attempt of a claimable job may share a trainer with such others."""
    has_died_barren = or_(
        and_(Job.state == "queued", Job.barren_deaths > 0), and_(Job.state == "running", Job.progress_at.is_(None))
    )
    precision = Job.spec["method"]["base_precision"].as_string()
    is_of_base = and_(Job.base_model == kin.base_model, func.coalesce(precision, "bf16") == kin.base_precision)
    # Whoever still searches a learning rate is several runs, and finds the same each time only if it is alone.
    is_to_search = Job.spec["rate_search"]["judged_rows"].as_integer().is_not(None)
    is_searching = and_(is_to_search, Job.spec["rate_search"]["found"]["rate"].as_float().is_(None))
    return and_(is_of_base, keeps_alike(kin), Job.attempt + 1 < Job.max_attempts, ~has_died_barren, ~is_searching)


def keeps_alike(other: Kin | TrainSpec) -> ColumnElement[bool]:
    """Whether a job keeps as much for backward: a model that runs its layers again does so for all its rows."""
    return and_(
        *(
            func.coalesce(Job.spec[name].as_boolean(), false()) == getattr(other, name)
            for name in ("activation_checkpointing", "activation_offload")
        )
    )


def _taking(*which: ColumnElement[bool], owner: str, lease_s: float) -> ReturningUpdate[str, int, int, int, int]:
    """One guarded UPDATE of the oldest such row that nobody else is just taking."""
    # A materialised CTE: Postgres may otherwise run a LIMIT subquery more than once, and lock more rows than it takes.
    chosen = (
        select(Job.id)
        .where(*which)
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("chosen")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return (
        update(Job)
        .where(Job.id == select(chosen.c.id).scalar_subquery())
        .values(_claimed(owner, lease_s))
        .returning(Job.id, Job.lease_epoch, Job.attempt, Job.max_attempts, Job.barren_deaths)
        .execution_options(synchronize_session=False)
    )


def claimable() -> ColumnElement[bool]:
    """Which rows a worker may take now."""
    return or_(_is_orphaned(), _is_waiting())


def _is_waiting() -> ColumnElement[bool]:
    return and_(Job.state == "queued", Job.run_after <= now_s(), Job.attempt < Job.max_attempts)


def _is_orphaned() -> ColumnElement[bool]:
    is_over = and_(Job.state == "running", Job.lease_until < now_s())
    is_wanted = and_(Job.cancel_requested_at.is_(None), Job.pause_requested_at.is_(None))
    return and_(is_over, is_wanted, ~_is_poison(), Job.attempt < Job.max_attempts)


def _is_poison() -> ColumnElement[bool]:
    """Whether one more death of the present attempt, as it stands, would be the last one allowed."""
    return and_(Job.progress_at.is_(None), Job.barren_deaths + 1 >= POISON_DEATHS)


def _claimed(owner: str, lease_s: float) -> dict[str, Any]:
    has_died = Job.state == "running"
    return {
        "state": "running",
        "phase": None,
        "attempt": Job.attempt + 1,
        "lease_epoch": Job.lease_epoch + 1,
        "lease_owner": owner,
        "lease_until": now_s() + lease_s,
        "started_at": func.coalesce(Job.started_at, now_s()),
        "progress_at": None,
        "barren_deaths": case(
            (and_(has_died, Job.progress_at.is_(None)), Job.barren_deaths + 1), (has_died, 0), else_=Job.barren_deaths
        ),
        "rings": 0,
        "last_rung_at": None,
    }
