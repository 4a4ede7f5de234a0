"""Browsers that are signed in, each as the bearer of a key: opened by the key or by a code, closed, or simply over.

A session dies with its key. What a browser holds is 256 random bits; what is kept is their hash.
"""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from core.records import accounts, audit
from core.records.database import Database, clock, now_s
from core.records.scope import Account
from core.records.tables import ApiKey, BrowserSession, Organization, SignInCode, new_id

CODE_S = 3600.0  # how long a code from the terminal is good
COARSE_S = 60.0  # how exactly a session's last request is known


@dataclass(frozen=True)
class Visitor:
    """Who sits at a signed-in browser. was_seen_lately: whether this visit is written down, to within a minute."""

    account: Account
    session_id: str
    key_name: str
    was_seen_lately: bool = True


def offer_code(db: Database) -> str | None:
    """A code that signs one browser in, once, as the bearer of the oldest administrator's key; None without any."""
    with db.writing() as session:
        oldest = select(ApiKey.id).where(ApiKey.is_admin, *_live()).order_by(ApiKey.created_at, ApiKey.id).limit(1)
        key_id = session.scalar(oldest)
        if key_id is None:
            return None
        code = secrets.token_urlsafe(32)
        until = clock(session) + CODE_S
        session.add(SignInCode(code_sha256=_digest(code), key_id=key_id, expires_at=until, used_at=None))
        return code


def open_session(session: Session, credential: str, *, lasts_s: float) -> str | None:
    """Signs a browser in by a key or a code: what its cookie is to hold; None where the credential opens nothing."""
    account = accounts.account_of(session, credential)
    if account is None:
        account = _account_of(session, _spend(session, credential))
    if account is None:
        return None
    token, now = secrets.token_urlsafe(32), clock(session)
    row = BrowserSession(
        id=new_id("session-"),
        token_sha256=_digest(token),
        key_id=account.key_id,
        created_at=now,
        seen_at=now,
        expires_at=now + lasts_s,
        closed_at=None,
    )
    session.add(row)
    audit.note(session, account, "session.opened", row.id)
    return token


def visitor_of(session: Session, token: str, *, idle_s: float) -> Visitor | None:
    """Whose cookie this is; None if it is unknown, closed, over, idle for too long, or its key opens nothing now."""
    is_open = and_(
        BrowserSession.closed_at.is_(None),
        BrowserSession.expires_at > now_s(),
        BrowserSession.seen_at > now_s() - idle_s,
    )
    found = session.execute(
        select(BrowserSession, ApiKey.name, now_s())
        .join(ApiKey, ApiKey.id == BrowserSession.key_id)
        .where(BrowserSession.token_sha256 == _digest(token), is_open)
    ).one_or_none()
    if found is None:
        return None
    row, key_name, now = found
    account = _account_of(session, row.key_id)
    if account is None:
        return None
    return Visitor(account, row.id, key_name, was_seen_lately=now - row.seen_at < COARSE_S)


def mark_seen(db: Database, visitor: Visitor) -> None:
    """Write down that the browser asked for something. Call it only where visitor.was_seen_lately is False."""
    with db.writing() as session:
        seen = update(BrowserSession).where(BrowserSession.id == visitor.session_id)
        session.execute(seen.values(seen_at=now_s()))


def close_session(session: Session, visitor: Visitor) -> None:
    """From now on the cookie opens nothing."""
    row = session.get_one(BrowserSession, visitor.session_id)
    if row.closed_at is None:
        row.closed_at = clock(session)
        audit.note(session, visitor.account, "session.closed", row.id)


def _spend(session: Session, code: str) -> str | None:
    """The key that a code stands for, the first time that it is told."""
    is_good = and_(
        SignInCode.code_sha256 == _digest(code), SignInCode.used_at.is_(None), SignInCode.expires_at > now_s()
    )
    spent = update(SignInCode).where(is_good).values(used_at=now_s()).returning(SignInCode.key_id)
    return session.scalars(spent).one_or_none()


def _account_of(session: Session, key_id: str | None) -> Account | None:
    found = session.execute(
        select(ApiKey, Organization.slug)
        .join(Organization, Organization.id == ApiKey.organization_id)
        .where(ApiKey.id == key_id, *_live())
    ).one_or_none()
    if found is None:
        return None
    key, slug = found
    return Account(key.organization_id, key.project_id, key.id, is_admin=key.is_admin, organization_slug=slug)


def _live() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now_s())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
