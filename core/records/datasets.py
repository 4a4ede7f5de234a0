"""Uploaded files: the rows. Their bytes are in the blob store, which rows may share: only rows are deleted."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from core.blobs import Blob
from core.records import audit
from core.records.database import clock, now_s
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import File, new_id


def add(
    session: Session,
    account: Account,
    *,
    filename: str,
    purpose: str,
    blob: Blob,
    status: str = "processed",
    validation: Mapping[str, Any] | None = None,
    expires_after_s: float | None = None,
) -> File:
    """Remember a file whose bytes are in the store. status: uploaded, processed, error."""
    now = clock(session)
    file = File(
        id=new_id("file-"),
        organization_id=account.organization_id,
        project_id=account.project_id,
        filename=filename,
        purpose=purpose,
        size_bytes=blob.size_bytes,
        blob_sha256=blob.sha256,
        status=status,
        validation=None if validation is None else dict(validation),
        created_at=now,
        expires_at=None if expires_after_s is None else now + expires_after_s,
    )
    session.add(file)
    session.flush()
    return file


def find(session: Session, account: Account, file_id: str) -> File | None:
    """The account's file, unless it is deleted or expired."""
    return session.scalars(select(File).where(File.id == file_id, *_present(account))).one_or_none()


def listed(
    session: Session,
    account: Account,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = 20,
    is_ascending: bool = False,
) -> Page[File]:
    """The account's files, newest first unless is_ascending."""
    files = select(File).where(*_present(account))
    if purpose is not None:
        files = files.where(File.purpose == purpose)
    return page(session, files, [File.created_at, File.id], after=after, limit=limit, is_ascending=is_ascending)


def delete(session: Session, account: Account, file_id: str) -> bool:
    """The file is missing from now on; jobs created with it still read its bytes. False where there is none."""
    file = find(session, account, file_id)
    if file is None:
        return False
    file.deleted_at = clock(session)
    audit.note(session, account, "file.deleted", file.id)
    return True


def _present(account: Account) -> tuple[ColumnElement[bool], ...]:
    is_fresh = or_(File.expires_at.is_(None), File.expires_at > now_s())
    return (*of(File, account), File.deleted_at.is_(None), is_fresh)
