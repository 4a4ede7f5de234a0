"""A project at a glance: how much there is of everything, and how many tokens went where."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.records.database import clock
from core.records.scope import Account, of
from core.records.tables import Adapter, File, Job, Usage

DAY_S = 86_400.0


@dataclass(frozen=True)
class Overview:
    """by_state: jobs. Tokens trained are those of all jobs; tokens served are prompts' and answers'.

    today: served since midnight in UTC.
    """

    by_state: dict[str, int]
    n_files: int
    n_adapters: int
    n_requests: int
    tokens_trained: int
    tokens_served: int
    today: int


def overview(session: Session, account: Account) -> Overview:
    """All of it since the project began."""
    states = select(Job.state, func.count()).where(*of(Job, account)).group_by(Job.state)
    files = select(func.count()).where(*of(File, account), File.deleted_at.is_(None), File.purpose == "fine-tune")
    adapters = select(func.count()).where(*of(Adapter, account), Adapter.deleted_at.is_(None))
    trained = select(func.coalesce(func.sum(Job.trained_tokens), 0)).where(*of(Job, account))
    tokens = func.coalesce(func.sum(Usage.prompt_tokens + Usage.completion_tokens), 0)
    midnight = clock(session) // DAY_S * DAY_S
    today = session.scalar(select(tokens).where(*of(Usage, account), Usage.created_at >= midnight))
    n_requests, served = session.execute(select(func.count(), tokens).where(*of(Usage, account))).one()
    return Overview(
        by_state=dict(session.execute(states).all()),
        n_files=session.scalar(files) or 0,
        n_adapters=session.scalar(adapters) or 0,
        n_requests=n_requests,
        tokens_trained=int(session.scalar(trained) or 0),
        tokens_served=int(served),
        today=int(today or 0),
    )


def failures(session: Session, account: Account, *, limit: int = 3) -> Sequence[Job]:
    """The newest jobs that failed in the last week and were not tried once more since."""
    again = select(Job.retry_of).where(*of(Job, account), Job.retry_of.is_not(None))
    lately = (Job.state == "failed", Job.finished_at > clock(session) - 7 * DAY_S, Job.id.not_in(again))
    return session.scalars(
        select(Job).where(*of(Job, account), *lately).order_by(Job.finished_at.desc()).limit(limit)
    ).all()
