"""A write that comes twice is done once. Which requests are one write is said here; the answers are kept in records.

A client may name a write (Idempotency-Key). The stock openai client does not, yet it repeats a POST whose answer it did
not get, and says so in x-stainless-retry-count: such a repetition with the same key and body counts as the same write.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session
from starlette.requests import Request

from api import errors
from core.records import idempotency
from core.records.accounts import Account
from core.records.tables import Idempotency

UNNAMED_S = 600.0  # how long an unnamed write's answer is kept
_NAME = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Write:
    """One write as its client sent it. is_new: an earlier one like it is another write and not this one."""

    route: str
    key: str
    body: bytes
    kept_s: float
    is_new: bool

    def answered(self, session: Session, account: Account) -> Idempotency | None:
        """What was answered to this write before. Call it in a writing transaction, before anything else there.

        Raises ClientError 422 where its name was used for another body.
        """
        try:
            kept = idempotency.replay(session, account, route=self.route, key=self.key, body=self.body)
        except idempotency.IdempotencyMismatch:
            raise errors.idempotency_mismatch() from None
        if kept is not None and self.is_new:
            session.delete(kept)
            session.flush()
            return None
        return kept

    def keep(self, session: Session, account: Account, answer: dict[str, Any]) -> None:
        """Keeps the answer, in the transaction of the write itself."""
        idempotency.keep(
            session,
            account,
            route=self.route,
            key=self.key,
            body=self.body,
            status=200,
            answer=answer,
            kept_s=self.kept_s,
        )


def write_of(request: Request, account: Account, route: str, body: bytes) -> Write:
    """Raises ClientError 400 for a malformed Idempotency-Key."""
    name = request.headers.get("idempotency-key")
    if name is None:
        key = f"unnamed {account.key_id} {hashlib.sha256(body).hexdigest()}"
        is_first = request.headers.get("x-stainless-retry-count", "0") == "0"
        return Write(route, key, body, UNNAMED_S, is_new=is_first)
    if not _NAME.fullmatch(name):
        raise errors.bad_request(
            "Idempotency-Key must be 1 to 255 printable ASCII characters without spaces.",
            param="Idempotency-Key",
            code="invalid_value",
        )
    return Write(route, f"named {name}", body, idempotency.KEPT_S, is_new=False)
