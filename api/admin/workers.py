"""/admin/workers: engines and trainers with what they say of themselves, what waits for them, and what was given up."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.admin.door import Page
from api.admin.render import render
from api.deps import AccountDep, ResourcesDep
from api.worker_answers import shape_of
from core.records import queue, workers

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

MOST_WAITING = 100
MOST_LETTERS = 20


@router.get("/workers", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """Who is alive and at what, what runs and waits in the order in which it is taken, and what was given up."""
    with resources.database.session() as session:
        alive = workers.living(session, account)
        line = queue.listed(session, account, limit=MOST_WAITING).rows
        places = queue.places(session, [job.id for job in line if job.state == "queued"])
        letters = queue.dead_letters(session, account, limit=MOST_LETTERS).rows
        again = queue.retried(session, account, [job.id for job in letters])
    return render(
        request,
        "workers.html",
        alive=[shape_of(one, is_admin=account.is_admin) for one in alive],
        line=line,
        places=places,
        longest_s=max((place.waits_s for place in places.values()), default=0.0),
        letters=letters,
        again=again,
        may=account.is_admin,
    )
