"""/v1/workers and /v1/queue: who is at work, what waits for them, and what was given up."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api import errors, shapes
from api.deps import AccountDep, AdminDep, After, Id, ResourcesDep
from api.guard import Guarded
from api.job_answers import shapes_of
from core.records import queue, workers
from core.records.workers import Worker

router = APIRouter(prefix="/v1", route_class=Guarded)

Limit = Annotated[int, Query(ge=1, le=100)]
_FOR_ADMINISTRATORS = ("owner", "pid", "url")


@router.get("/workers", response_model=None)
def list_workers(account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Engines and trainers that live. Where they run is an administrator's to know."""
    with resources.database.session() as session:
        found = workers.living(session, account)
    return shapes.plain_list(_worker(one, is_admin=account.is_admin) for one in found)


@router.post("/workers/{worker_id}/drain", response_model=None)
def drain(worker_id: Id, account: AdminDep, resources: ResourcesDep) -> shapes.Shape:
    """It takes no more work and stays, idle, until it is stopped; its jobs go on elsewhere."""
    with resources.database.writing() as session:
        if not workers.ask_to_drain(session, account, worker_id):
            raise errors.not_found("There is no such worker.", param="id", code="worker_not_found")
        found = next(one for one in workers.living(session, account) if one.presence.id == worker_id)
        return _worker(found, is_admin=True)


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


def _worker(one: Worker, *, is_admin: bool) -> shapes.Shape:
    row = one.presence
    details: dict[str, Any] = {**row.details, "url": row.url}
    status = {name: value for name, value in details.pop("status", {}).items() if name != "by_adapter"}
    device = details.pop("device", None)
    if not isinstance(device, dict):
        device = {"kind": device, "memory_bytes": details.get("memory_bytes")}
    return {
        "id": row.id,
        "object": "worker",
        "role": row.role,
        "state": _state(one, status),
        "base_model": row.base_model,
        "started_at": int(row.started_at),
        "heartbeat_age_s": round(one.silent_s, 1),
        "drain_requested_at": shapes.whole(row.drain_requested_at),
        "device": device,
        "jobs": list(one.job_ids),
        "n_jobs": one.n_jobs,
        "status": status or None,
        "details": {name: details[name] for name in details if is_admin or name not in _FOR_ADMINISTRATORS},
    }


def _state(one: Worker, status: dict[str, Any]) -> str:
    """starting, ready, busy, draining or drained."""
    is_at_work = bool(one.n_jobs or status.get("running") or status.get("waiting"))
    if one.presence.drain_requested_at is not None:
        return "draining" if is_at_work else "drained"
    if not one.presence.is_ready:
        return "draining" if status.get("is_draining") else "starting"
    return "busy" if is_at_work else "ready"
