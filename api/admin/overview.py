"""/admin: what runs, what waits, what failed, which devices there are, and what to do next."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.admin.door import Page
from api.admin.render import render
from api.deps import AccountDep, ResourcesDep
from api.worker_answers import shape_of
from core.records import jobs, workers
from core.records.overview import failures, overview

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

RECENT = 6


@router.get("", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """The first page."""
    with resources.database.session() as session:
        glance = overview(session, account)
        recent = jobs.listed(session, account, limit=RECENT)
        alive = [shape_of(one, is_admin=False) for one in workers.living(session, account)]
        troubles = failures(session, account)
    return render(
        request,
        "overview.html",
        glance=glance,
        recent=recent.rows,
        alive=alive,
        troubles=troubles,
        steps=_steps(glance.n_files, sum(glance.by_state.values()), glance.n_adapters, glance.n_requests),
    )


def _steps(n_files: int, n_jobs: int, n_adapters: int, n_requests: int) -> list[bool]:
    """Which of a newcomer's four steps are done: data, a job, an adapter, a question put to it."""
    return [n_files > 0, n_jobs > 0, n_adapters > 0, n_adapters > 0 and n_requests > 0]
