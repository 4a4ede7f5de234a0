"""Tokens delivered: one row for each request, however often it is told."""

from sqlalchemy.orm import Session

from core.records.database import insert_or, now_s
from core.records.scope import Account
from core.records.tables import Usage


def record(
    session: Session, account: Account, *, request_id: str, model: str, prompt_tokens: int, completion_tokens: int
) -> None:
    """Write down what a request was given. The first telling counts."""
    row = {
        "request_id": request_id,
        "organization_id": account.organization_id,
        "project_id": account.project_id,
        "model": model,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "created_at": now_s(),
    }
    session.execute(insert_or(session, Usage).values(**row).on_conflict_do_nothing())
