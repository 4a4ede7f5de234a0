"""Tokens delivered, summed: by day and by model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, ColumnElement, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.records.database import clock
from core.records.names import model_name
from core.records.scope import Account, of
from core.records.tables import Job, Usage

DAY_S = 86_400


@dataclass(frozen=True)
class Tokens:
    """Of one day (day: seconds since 1970 at its beginning in UTC) or of one model."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    day: int = 0
    model: str = ""
    trained_tokens: int = 0


_SUMS = (func.count(), func.sum(Usage.prompt_tokens), func.sum(Usage.completion_tokens))


def by_day(session: Session, account: Account, *, days: int) -> Sequence[Tokens]:
    """The last so many days, oldest first, those without requests too."""
    today = int(clock(session)) // DAY_S
    number = _number(Usage.created_at)
    since = Usage.created_at >= (today - days + 1) * DAY_S
    rows = session.execute(select(number, *_SUMS).where(*of(Usage, account), since).group_by(number))
    found = {int(n): Tokens(requests, int(read), int(said), day=int(n) * DAY_S) for n, requests, read, said in rows}
    return [found.get(n, Tokens(0, 0, 0, day=n * DAY_S)) for n in range(today - days + 1, today + 1)]


def by_day_and_model(session: Session, account: Account, *, days: int) -> dict[int, list[Tokens]]:
    """Tokens served and trained for each of the last so many days, oldest first, by model in the order of names.

    A job's tokens count for the day of its end, whatever that was, and for the model that it made or would have made.
    """
    today = int(clock(session)) // DAY_S
    first = (today - days + 1) * DAY_S
    found = {day: dict[str, Tokens]() for day in range(first, (today + 1) * DAY_S, DAY_S)}
    number = _number(Usage.created_at)
    served = select(number, Usage.model, *_SUMS).where(*of(Usage, account), Usage.created_at >= first)
    for n, model, requests, read, said in session.execute(served.group_by(number, Usage.model)):
        day = int(n) * DAY_S
        found[day][model] = Tokens(requests, int(read), int(said), day=day, model=model)
    ended = (*of(Job, account), Job.finished_at >= first, Job.trained_tokens > 0)
    for job in session.scalars(select(Job).where(*ended)):
        day = int(job.finished_at or 0) // DAY_S * DAY_S
        model = model_name(job.base_model, account.organization_slug, job.suffix, job.id)
        before = found[day].get(model) or Tokens(0, 0, 0, day=day, model=model)
        found[day][model] = replace(before, trained_tokens=job.trained_tokens or 0)
    return {day: [models[name] for name in sorted(models)] for day, models in found.items()}


def _number(moment: ColumnElement[float] | InstrumentedAttribute[float]) -> ColumnElement[int]:
    """Which day since 1970 a moment is of. By floor: a cast alone rounds on Postgres, the last half second a day on."""
    return cast(func.floor(moment), BigInteger) // DAY_S


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
