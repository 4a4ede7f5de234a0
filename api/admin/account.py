"""/admin/keys, /usage, /audit and /settings: who may ask, what was used, what was done, and what is in force."""

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import Response

from api import errors
from api.admin.door import Page, form_of
from api.admin.render import render
from api.deps import AccountDep, After, ResourcesDep
from api.in_force import in_force
from api.resources import Resources
from core.records import accounts, audit
from core.records.accounts import Account
from core.records.usage_by_day import by_day, by_model

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

DAYS = 30
LONGEST_NAME = 200


@router.get("/keys", response_model=None)
def keys(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The project's keys, newest first."""
    return _keys(request, account, resources, after=after)


@router.post("/keys", response_model=None)
async def create_key(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """A further key, whose text is on this page and never again."""
    form = await form_of(request)
    name = form.get("name", "").strip()
    if not account.is_admin:
        raise errors.forbidden("Only an administrator's key may make others.")
    if not 0 < len(name) <= LONGEST_NAME:
        raise errors.bad_request("A key needs a name of at most 200 characters.", param="name")
    text = await run_sync(_created, resources, account, name, form.get("admin") == "on")
    return await run_sync(lambda: _keys(request, account, resources, text=text))


@router.post("/keys/{key_id}/revoke", response_model=None)
def revoke_key(key_id: str, request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """From now on it opens nothing, and whoever is signed in by it is signed out."""
    if not account.is_admin:
        raise errors.forbidden("Only an administrator's key may revoke others.")
    if key_id == account.key_id:
        raise errors.conflict("You are signed in by this very key: use another to revoke it.", code="key_in_use")
    with resources.database.writing() as session:
        if not accounts.revoke_key(session, account, key_id):
            raise errors.not_found("There is no such key.")
    return _keys(request, account, resources)


@router.get("/usage", response_model=None)
def usage(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """Tokens of the last days, and by model."""
    with resources.database.session() as session:
        days, models = by_day(session, account, days=DAYS), by_model(session, account)
    most = max((day.prompt_tokens + day.completion_tokens for day in days), default=0)
    return render(request, "usage.html", days=days, models=models, most=most)


@router.get("/audit", response_model=None)
def entries(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """Every privileged action of the project, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = audit.listed(session, account, after=after, limit=50)
        names = {key.id: key.name for key in accounts.listed_keys(session, account, limit=200).rows}
    return render(request, "audit.html", page=page, names=names)


@router.get("/settings", response_model=None)
def settings(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """What is in force here. Secrets are not shown, and only administrators see the rest."""
    if not account.is_admin:
        raise errors.forbidden("Only an administrator's key may see the settings.")
    return render(request, "settings.html", settings=in_force(resources.settings), bases=resources.settings.base_models)


def _keys(
    request: Request, account: Account, resources: Resources, *, after: str | None = None, text: str | None = None
) -> Response:
    with resources.database.session() as session, errors.unknown_cursor():
        page = accounts.listed_keys(session, account, after=after)
    return render(request, "keys.html", page=page, text=text, own=account.key_id, may=account.is_admin)


def _created(resources: Resources, account: Account, name: str, is_admin: bool) -> str:  # noqa: FBT001
    with resources.database.writing() as session:
        _, text = accounts.create_key(
            session, account, name=name, environment=resources.settings.environment, is_admin=is_admin
        )
        return text
