"""/admin/jobs/compare: several jobs on one page: their curves over each other, what differs, what came of each.

Jobs that trained in step can be looked at as one: their curves as a mean, their figures together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from api import errors
from api.admin.door import Page
from api.admin.render import render
from api.admin.values import differences
from api.deps import AccountDep, ResourcesDep
from core.records import jobs
from core.records.accounts import Account
from core.records.company import companies
from core.records.database import clock
from core.records.scope import of
from core.records.tables import TERMINAL_STATES, Adapter, Job

router = APIRouter(prefix="/admin/jobs", route_class=Page, include_in_schema=False)

FEWEST = 2
MOST = 8  # as many as there are colours that can be told apart


@dataclass(frozen=True)
class Group:
    """Jobs that trained in step, or one that trained alone."""

    jobs: Sequence[Job]
    at_s: float  # when it is looked at

    @property
    def is_several(self) -> bool:
        """Whether there is anything to be looked at as one."""
        return len(self.jobs) > 1

    @property
    def tokens(self) -> int:
        """That all of them trained on so far."""
        return sum(job.trained_tokens or 0 for job in self.jobs)

    @property
    def steps(self) -> tuple[int, int]:
        """The fewest and the most that one of them has made."""
        made = [job.step or 0 for job in self.jobs]
        return min(made), max(made)

    @property
    def seconds(self) -> float | None:
        """From the first start to the last end, or to now while one of them is not over. None where none began."""
        began = [job.started_at for job in self.jobs if job.started_at is not None]
        ended = [job.finished_at or self.at_s for job in self.jobs]
        return max(0.0, max(ended) - min(began)) if began else None

    @property
    def memory_bytes(self) -> int | None:
        """At the peak of the process that trained them, as those that are over measured it: not a sum."""
        return max((job.measured["memory_bytes"] for job in self.jobs if job.measured), default=None)

    def weight(self, job: Job) -> float:
        """What one of its jobs counts for in the mean: tokens of its average step, or 1 where one job's are unknown."""
        if not all(one.step and one.trained_tokens for one in self.jobs):
            return 1.0
        return (job.trained_tokens or 0) / (job.step or 1)


JobIds = Annotated[list[str] | None, Query(alias="job", max_length=64)]


@router.get("/compare", response_model=None)
def compare(request: Request, account: AccountDep, resources: ResourcesDep, job: JobIds = None) -> Response:
    """The jobs that ?job= names, each once. Their figures come to the page by /v1."""
    chosen = list(dict.fromkeys(job or []))
    if not FEWEST <= len(chosen) <= MOST:
        message = (
            f"{FEWEST} to {MOST} jobs can be compared, and {len(chosen)} were chosen: mark some in the list of jobs."
        )
        raise errors.bad_request(message, param="job", code="invalid_value")
    with resources.database.session() as session:
        now = clock(session)
        groups = [Group(company, now) for company in companies(session, _found(session, account, chosen))]
        rows = [one for group in groups for one in group.jobs]
        adapters = session.scalars(select(Adapter).where(*of(Adapter, account), Adapter.job_id.in_(chosen))).all()
    differing = differences(rows)
    return render(
        request,
        "compare.html",
        jobs=rows,
        groups=groups,
        has_groups=any(group.is_several for group in groups),
        number={one.id: n for n, one in enumerate(rows, 1)},
        adapters={adapter.job_id: adapter for adapter in adapters if adapter.deleted_at is None},
        differing=[(name, row) for name, row in differing if all(row)],
        peculiar=[(name, row) for name, row in differing if not all(row)],
        is_over=all(one.state in TERMINAL_STATES for one in rows),
    )


def _found(session: Session, account: Account, chosen: Iterable[str]) -> Sequence[Job]:
    found = []
    for job_id in chosen:
        one = jobs.find(session, account, job_id)
        if one is None:
            raise errors.job_not_found(job_id)
        found.append(one)
    return found
