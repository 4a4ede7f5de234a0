"""Who did what to which: one row for each privileged action, in the transaction of the action itself."""

from typing import TypedDict, Unpack

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.records.database import clock
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import AuditEntry, new_id

_COLUMNS = {"action": AuditEntry.action, "target": AuditEntry.target, "key_id": AuditEntry.key_id}


class Sought(TypedDict, total=False):
    """Which entries; None and what is left out do not count. since is included, until is not: seconds since 1970."""

    action: str | None
    target: str | None
    key_id: str | None
    since: float | None
    until: float | None


def note(session: Session, account: Account, action: str, target: str) -> None:
    """Write one down. action: file.deleted, job.cancelled, model.deleted, adapter.imported, key.created, …revoked."""
    session.add(
        AuditEntry(
            id=new_id("audit-"),
            organization_id=account.organization_id,
            project_id=account.project_id,
            key_id=account.key_id,
            action=action,
            target=target,
            created_at=clock(session),
        )
    )


def listed(
    session: Session, account: Account, *, after: str | None = None, limit: int = 20, **sought: Unpack[Sought]
) -> Page[AuditEntry]:
    """The project's entries that are sought, newest first."""
    entries = select(AuditEntry).where(*of(AuditEntry, account))
    for name, column in _COLUMNS.items():
        if (value := sought.get(name)) is not None:
            entries = entries.where(column == value)
    if (since := sought.get("since")) is not None:
        entries = entries.where(AuditEntry.created_at >= since)
    if (until := sought.get("until")) is not None:
        entries = entries.where(AuditEntry.created_at < until)
    return page(session, entries, [AuditEntry.created_at, AuditEntry.id], after=after, limit=limit)


def actions(session: Session, account: Account) -> list[str]:
    """What kinds of action the project has seen, in the order of the alphabet."""
    seen = select(AuditEntry.action).where(*of(AuditEntry, account)).distinct()
    return sorted(session.scalars(seen))
