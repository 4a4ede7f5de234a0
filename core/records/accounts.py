"""Organisations, projects and the keys that open them. Account (who asks) is at home in records/scope.py."""

import os
from pathlib import Path

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from core.records import audit, keys
from core.records.database import Database, clock, insert_or, now_s
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import ApiKey, Organization, Project, new_id

__all__ = [
    "Account",
    "account_of",
    "create_key",
    "create_project",
    "ensure_first_key",
    "listed_keys",
    "mark_used",
    "revoke_key",
]

FIRST_SLUG = "default"
COARSE_S = 60.0  # how exactly a key's last use is known


def account_of(session: Session, text: str) -> Account | None:
    """Whose key this is; None if it is malformed, unknown, revoked or expired, without saying which."""
    if not keys.is_well_formed(text):
        return None
    is_live = and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now_s()))
    found = session.execute(
        select(ApiKey, Organization.slug, now_s())
        .join(Organization, Organization.id == ApiKey.organization_id)
        .where(ApiKey.key_sha256 == keys.digest(text), is_live)
    ).one_or_none()
    if found is None:
        return None
    key, slug, now = found
    return Account(
        organization_id=key.organization_id,
        project_id=key.project_id,
        key_id=key.id,
        is_admin=key.is_admin,
        organization_slug=slug,
        was_used_lately=key.last_used_at is not None and now - key.last_used_at < COARSE_S,
    )


def mark_used(db: Database, account: Account) -> None:
    """Write down that the key was used. Call it only where account.was_used_lately is False."""
    with db.writing() as session:
        session.execute(update(ApiKey).where(ApiKey.id == account.key_id).values(last_used_at=now_s()))


def create_key(
    session: Session,
    account: Account,
    *,
    name: str,
    environment: str,
    is_admin: bool = False,
    expires_after_s: float | None = None,
) -> tuple[ApiKey, str]:
    """A further key of the account's project, and its text, which is shown this once."""
    text = keys.make(environment)
    key = _key_row(session, account.organization_id, account.project_id, text, name=name, is_admin=is_admin)
    key.expires_at = None if expires_after_s is None else key.created_at + expires_after_s
    audit.note(session, account, "key.created", key.id)
    return key, text


def revoke_key(session: Session, account: Account, key_id: str) -> bool:
    """From now on the key opens nothing. False where the account has no such key."""
    key = session.scalars(select(ApiKey).where(ApiKey.id == key_id, *of(ApiKey, account))).one_or_none()
    if key is None:
        return False
    if key.revoked_at is None:
        key.revoked_at = clock(session)
        audit.note(session, account, "key.revoked", key.id)
    return True


def listed_keys(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[ApiKey]:
    """The project's keys, newest first, the revoked ones too."""
    statement = select(ApiKey).where(*of(ApiKey, account))
    return page(session, statement, [ApiKey.created_at, ApiKey.id], after=after, limit=limit)


def create_project(
    db: Database, *, slug: str, name: str, environment: str, is_admin: bool = False
) -> tuple[Account, str]:
    """A new organisation with one project and one key: its account, the key's text. IntegrityError if slug is taken."""
    with db.writing() as session:
        organization = Organization(id=new_id("org-"), slug=slug, name=name, created_at=clock(session))
        session.add(organization)
        session.flush()
        return _first_project(session, organization.id, slug, environment=environment, is_admin=is_admin)


def ensure_first_key(db: Database, data_dir: Path, *, environment: str = "local") -> str | None:
    """Make the default organisation, its project and an administrator's key, once; the key's text if it was made now.

    However many processes start at once, one makes them. The text is kept in data_dir/admin.key, which its owner alone
    may read. It is written before the commit: a crash in between leaves a file that opens nothing, and the next start
    replaces it.
    """
    with db.writing() as session:
        organization = {"id": new_id("org-"), "slug": FIRST_SLUG, "name": "Default", "created_at": clock(session)}
        statement = insert_or(session, Organization).values(**organization).on_conflict_do_nothing()
        made = session.scalars(statement.returning(Organization.id)).one_or_none()
        if made is None:
            return None
        _, text = _first_project(session, made, FIRST_SLUG, environment=environment, is_admin=True)
        _write_secret(data_dir / "admin.key", text)
        return text


def _first_project(
    session: Session, organization_id: str, slug: str, *, environment: str, is_admin: bool
) -> tuple[Account, str]:
    project = Project(id=new_id("proj-"), organization_id=organization_id, name="Default", created_at=clock(session))
    session.add(project)
    session.flush()
    text = keys.make(environment)
    key = _key_row(session, organization_id, project.id, text, name="first", is_admin=is_admin)
    account = Account(organization_id, project.id, key.id, is_admin=is_admin, organization_slug=slug)
    audit.note(session, account, "key.created", key.id)
    return account, text


def _key_row(
    session: Session, organization_id: str, project_id: str, text: str, *, name: str, is_admin: bool
) -> ApiKey:
    key = ApiKey(
        id=new_id("key-"),
        organization_id=organization_id,
        project_id=project_id,
        name=name,
        prefix=keys.shown(text),
        key_sha256=keys.digest(text),
        is_admin=is_admin,
        created_at=clock(session),
    )
    session.add(key)
    session.flush()
    return key


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
