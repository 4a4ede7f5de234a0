"""Which engines and trainers live: each says so every few seconds, and whoever has not said so lately is gone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.records.database import Database, insert_or, now_s
from core.records.tables import Presence

Role = Literal["engine", "trainer"]
STALE_S = 6.0


def beat(
    db: Database,
    presence_id: str,
    *,
    role: Role,
    is_ready: bool,
    details: Mapping[str, Any],
    url: str | None = None,
    base_model: str | None = None,
) -> bool:
    """Say that a process lives; whether it was asked to take no more work.

    presence_id: its own for as long as it lives, made with tables.new_id("engine-").
    """
    said = {"is_ready": is_ready, "details": dict(details), "url": url, "base_model": base_model, "beat_at": now_s()}
    with db.writing() as session:
        statement = insert_or(session, Presence).values(id=presence_id, role=role, started_at=now_s(), **said)
        told = statement.on_conflict_do_update(index_elements=[Presence.id], set_=said)
        return session.scalar(told.returning(Presence.drain_requested_at)) is not None


def alive(session: Session, role: Role, *, stale_s: float = STALE_S) -> Sequence[Presence]:
    """Those of a role that spoke within stale_s, ready or not, oldest first."""
    lately = Presence.beat_at > now_s() - stale_s
    statement = select(Presence).where(Presence.role == role, lately)
    return session.scalars(statement.order_by(Presence.started_at, Presence.id)).all()


def leave(db: Database, presence_id: str) -> None:
    """Say that a process ends, so that nobody waits for it."""
    with db.writing() as session:
        session.execute(delete(Presence).where(Presence.id == presence_id))
