"""/admin/adapters and /admin/playground: what was made, and what it says beside others."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import errors
from api.admin.door import Page
from api.admin.render import render
from api.deps import AccountDep, After, Id, ResourcesDep
from api.generation_request import MAX_MODELS
from core.records import adapters, jobs
from core.records.residency import holdings

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)


@router.get("/adapters", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The project's adapters, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = adapters.listed(session, account, after=after)
    return render(request, "adapters.html", page=page, base_models=list(resources.settings.base_models))


@router.get("/adapters/{adapter_id}", response_model=None)
def one(request: Request, adapter_id: Id, account: AccountDep, resources: ResourcesDep) -> Response:
    """One adapter: its file, its origin, and where it is resident."""
    with resources.database.session() as session:
        adapter = adapters.find(session, account, adapter_id)
        if adapter is None:
            raise errors.adapter_not_found(adapter_id)
        job = jobs.find(session, account, adapter.job_id) if adapter.job_id else None
        checkpoints = jobs.checkpoints(session, account, job.id, limit=10).rows if job else []
        holders = holdings(session).get(adapter.blob_sha256, [])
    return render(
        request,
        "adapter.html",
        adapter=adapter,
        job=job,
        checkpoints=checkpoints,
        holders=[(one.engine_id, one.tier) for one in holders],
    )


@router.get("/playground", response_model=None)
def playground(
    request: Request, account: AccountDep, resources: ResourcesDep, model: Annotated[list[str] | None, Query()] = None
) -> Response:
    """One prompt to several models, the base among them unless models are named."""
    with resources.database.session() as session:
        own = adapters.models(session, account)
    names = [*resources.settings.base_names, *(one.name for one in own)]
    chosen = [name for name in model or [] if name in names]
    first = [resources.settings.default_base_model, *(chosen or names[len(resources.settings.base_names) :][:1])]
    return render(
        request, "playground.html", names=names, chosen=list(dict.fromkeys(first))[:MAX_MODELS], most=MAX_MODELS
    )
