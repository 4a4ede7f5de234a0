"""Writes that a client may repeat: the same key with the same body gets the same answer, and makes nothing new.

The answer is kept in the transaction that makes the thing, so that a crash leaves both or neither.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.records.database import clock
from core.records.scope import Account
from core.records.tables import Idempotency

KEPT_S = 24 * 3600.0


class IdempotencyMismatch(ValueError):
    """The key was used for a different request."""


def replay(session: Session, account: Account, *, route: str, key: str, body: bytes) -> Idempotency | None:
    """The answer kept for this key, or None where the request is to be carried out now.

    Call it first in the writing transaction: a second request with the same key then waits for the first to commit (by
    the one write lock of SQLite, by an advisory lock of Postgres), and finds its answer. IdempotencyMismatch where the
    body is another.
    """
    if session.get_bind().dialect.name == "postgresql":
        name = f"{account.project_id}\n{route}\n{_sha256(key.encode())}"
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    kept = session.get(Idempotency, (account.project_id, route, _sha256(key.encode())))
    if kept is None:
        return None
    if kept.expires_at < clock(session):
        session.delete(kept)
        session.flush()
        return None
    if kept.request_sha256 != _sha256(body):
        raise IdempotencyMismatch("this Idempotency-Key was used with a different request body")
    return kept


def keep(
    session: Session,
    account: Account,
    *,
    route: str,
    key: str,
    body: bytes,
    status: int,
    answer: Mapping[str, Any],
    kept_s: float = KEPT_S,
) -> None:
    """Keep an answer for kept_s, in the transaction that replay was called in."""
    session.add(
        Idempotency(
            project_id=account.project_id,
            route=route,
            key_sha256=_sha256(key.encode()),
            request_sha256=_sha256(body),
            status=status,
            body=dict(answer),
            expires_at=clock(session) + kept_s,
        )
    )
    session.flush()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
