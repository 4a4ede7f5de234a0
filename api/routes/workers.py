"""/v1/workers and /v1/queue: who is at work, what waits for them, and what was given up."""

from typing import Annotated

from fastapi import APIRouter, Query

from api import errors, shapes
from api.deps import AccountDep, AdminDep, After, Id, ResourcesDep
from api.guard import Guarded
from api.job_answers import shapes_of
from api.worker_answers import shape_of
from core.records import queue, workers

router = APIRouter(prefix="/v1", route_class=Guarded)

Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/workers", response_model=None)
def list_workers(account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Engines and trainers that live. Where they run is an administrator's to know."""
    with resources.database.session() as session:
        found = workers.living(session, account)
    return shapes.plain_list(shape_of(one, is_admin=account.is_admin) for one in found)


@router.post("/workers/{worker_id}/drain", response_model=None)
def drain(worker_id: Id, account: AdminDep, resources: ResourcesDep) -> shapes.Shape:
    """It takes no more work and stays, idle, until it is stopped; its jobs go on elsewhere."""
    with resources.database.writing() as session:
        if not workers.ask_to_drain(session, account, worker_id):
            raise errors.not_found("There is no such worker.", param="id", code="worker_not_found")
        found = next(one for one in workers.living(session, account) if one.presence.id == worker_id)
        return shape_of(found, is_admin=True)


@router.get("/queue", response_model=None)
def show(account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 20) -> shapes.Shape:
    """The project's jobs that have not ended, in the order in which they are taken, and how many are in which state."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = queue.listed(session, account, after=after, limit=limit)
        return {**shapes_of(session, account, page), "counts": queue.counted(session, account)}


@router.get("/queue/dead_letters", response_model=None)
def dead_letters(account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 20) -> shapes.Shape:
    """The project's jobs whose attempts all died, newest first. Each can be retried."""
    with resources.database.session() as session, errors.unknown_cursor():
        return shapes_of(session, account, queue.dead_letters(session, account, after=after, limit=limit))
