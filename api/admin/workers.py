"""/admin/workers: engines and trainers with what they say of themselves, and the jobs that wait for one."""

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.responses import Response

from api.admin.door import Page
from api.admin.render import render
from api.deps import AccountDep, ResourcesDep
from core.records import presences
from core.records.scope import of
from core.records.tables import Job

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

MOST_WAITING = 100


@router.get("/workers", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """Who is alive, what runs, and what waits, oldest first."""
    under_way = select(Job).where(*of(Job, account), Job.state.in_(("running", "queued", "validating_files")))
    with resources.database.session() as session:
        alive = [*presences.alive(session, "engine"), *presences.alive(session, "trainer")]
        found = session.scalars(under_way.order_by(Job.created_at, Job.id).limit(MOST_WAITING)).all()
    return render(
        request,
        "workers.html",
        alive=alive,
        running=[job for job in found if job.state == "running"],
        waiting=[job for job in found if job.state != "running"],
    )
