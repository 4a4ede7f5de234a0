"""/admin/playground: a prompt or a conversation put to several models at once, and the answers that are kept."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import errors
from api.admin.door import Page
from api.admin.render import render
from api.deps import AccountDep, After, ResourcesDep
from api.generation_request import MAX_MODELS
from core.records import adapters, evaluation_rows

router = APIRouter(prefix="/admin/playground", route_class=Page, include_in_schema=False)


@router.get("", response_model=None)
def show(
    request: Request, account: AccountDep, resources: ResourcesDep, model: Annotated[list[str] | None, Query()] = None
) -> Response:
    """Several models side by side, the default base always among them; beside it those named, or the newest."""
    with resources.database.session() as session:
        own = adapters.models(session, account)
        n_kept = evaluation_rows.counted(session, account)
    names = [*resources.settings.base_names, *(one.name for one in own)]
    chosen = [name for name in model or [] if name in names]
    first = [resources.settings.default_base_model, *(chosen or names[len(resources.settings.base_names) :][:1])]
    return render(
        request,
        "playground.html",
        names=names,
        versions={one.name: one.version for one in own if one.version},
        chosen=list(dict.fromkeys(first))[:MAX_MODELS],
        most=MAX_MODELS,
        n_kept=n_kept,
    )


@router.get("/rows", response_model=None)
def rows(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The conversations whose answers somebody held right, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = evaluation_rows.listed(session, account, after=after)
        n_kept = evaluation_rows.counted(session, account)
    return render(request, "evaluation_rows.html", page=page, n_kept=n_kept)
