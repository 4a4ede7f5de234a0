"""Tokens delivered, summed: by day and by model."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.orm import Session

from core.records.database import clock
from core.records.scope import Account, of
from core.records.tables import Usage

DAY_S = 86_400


@dataclass(frozen=True)
class Tokens:
    """Of one day (day: seconds since 1970 at its beginning in UTC) or of one model."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    day: int = 0
    model: str = ""


_SUMS = (func.count(), func.sum(Usage.prompt_tokens), func.sum(Usage.completion_tokens))


def by_day(session: Session, account: Account, *, days: int) -> Sequence[Tokens]:
    """The last so many days, oldest first, those without requests too."""
    today = int(clock(session)) // DAY_S
    number = cast(Usage.created_at, BigInteger) // DAY_S
    since = Usage.created_at >= (today - days + 1) * DAY_S
    rows = session.execute(select(number, *_SUMS).where(*of(Usage, account), since).group_by(number))
    found = {int(n): Tokens(requests, int(read), int(said), day=int(n) * DAY_S) for n, requests, read, said in rows}
    return [found.get(n, Tokens(0, 0, 0, day=n * DAY_S)) for n in range(today - days + 1, today + 1)]


def by_model(session: Session, account: Account, *, limit: int = 100) -> Sequence[Tokens]:
    """Those asked most, by tokens."""
    rows = session.execute(
        select(Usage.model, *_SUMS)
        .where(*of(Usage, account))
        .group_by(Usage.model)
        .order_by(func.sum(Usage.prompt_tokens + Usage.completion_tokens).desc(), Usage.model)
        .limit(limit)
    )
    return [Tokens(requests, int(read), int(said), model=model) for model, requests, read, said in rows]
