"""Who did what to which: one row for each privileged action, in the transaction of the action itself."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.records.database import clock
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import AuditEntry, new_id


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


def listed(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[AuditEntry]:
    """The project's entries, newest first."""
    entries = select(AuditEntry).where(*of(AuditEntry, account))
    return page(session, entries, [AuditEntry.created_at, AuditEntry.id], after=after, limit=limit)
