"""Conversations whose last answer somebody holds right: kept one by one, read as one dataset of the chat format."""

import json
from collections.abc import Iterator, Sequence

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from core.data.json_lines import MAX_LINE_BYTES
from core.records import audit
from core.records.database import clock
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import EvaluationRow, Project, new_id
from core.specs.dataset import ChatExample

MOST = 2000  # rows of a project
MOST_BYTES = 32 << 20  # of a project's rows together: they are read at once


class TooMany(ValueError):
    """The project keeps as many rows as it may. The message is for the customer."""


class TooLong(ValueError):
    """No dataset may hold a line so long. The message is for the customer."""


def add(session: Session, account: Account, example: ChatExample, *, model: str | None) -> EvaluationRow:
    """Keep a conversation. model: whose answer it ends with, where no person wrote it. Raises TooLong, TooMany."""
    messages = [turn.model_dump(exclude_none=True) for turn in example.messages]
    size_bytes = len(line(messages))
    if size_bytes > MAX_LINE_BYTES:
        raise TooLong(f"the conversation has {size_bytes} bytes; a line of a dataset holds at most {MAX_LINE_BYTES}")
    session.execute(select(Project.id).where(Project.id == account.project_id).with_for_update(key_share=True))
    counts = select(func.count(), func.coalesce(func.sum(EvaluationRow.size_bytes), 0))
    n, n_bytes = session.execute(counts.where(*of(EvaluationRow, account))).one()
    if n >= MOST or n_bytes + size_bytes > MOST_BYTES:
        raise TooMany(
            f"a project keeps at most {MOST} evaluation rows of {MOST_BYTES} bytes together, and it has {n} of "
            f"{n_bytes} bytes: make a file of them, then delete some"
        )
    row = EvaluationRow(
        id=new_id("evalrow-"),
        organization_id=account.organization_id,
        project_id=account.project_id,
        messages=messages,
        model=model,
        size_bytes=size_bytes,
        created_at=clock(session),
    )
    session.add(row)
    session.flush()
    return row


def listed(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[EvaluationRow]:
    """The project's rows, newest first."""
    return page(session, _own(account), [EvaluationRow.created_at, EvaluationRow.id], after=after, limit=limit)


def counted(session: Session, account: Account) -> int:
    """How many rows the project keeps."""
    return session.scalar(select(func.count()).where(*of(EvaluationRow, account))) or 0


def delete(session: Session, account: Account, row_id: str) -> bool:
    """The row is gone, its text too. False where the account has none of that id."""
    row = session.scalars(_own(account).where(EvaluationRow.id == row_id)).one_or_none()
    if row is None:
        return False
    session.delete(row)
    audit.note(session, account, "evaluation_row.deleted", row.id)
    return True


def lines(session: Session, account: Account) -> Iterator[bytes]:
    """The project's rows as a dataset of the chat format, oldest first; what was kept twice stands once."""
    seen = set[bytes]()
    for row in session.scalars(_own(account).order_by(EvaluationRow.created_at, EvaluationRow.id)):
        said = line(row.messages)
        if said not in seen:
            seen.add(said)
            yield said


def line(messages: Sequence[object]) -> bytes:
    """A conversation as a line of JSON."""
    return json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"


def _own(account: Account) -> Select[EvaluationRow]:
    return select(EvaluationRow).where(*of(EvaluationRow, account))
