"""/admin/keys and /admin/audit: who may ask, and what was done."""

import calendar
import time
from typing import Annotated
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from api import errors
from api.admin.door import Page, form_of
from api.admin.render import render
from api.deps import AccountDep, After, ResourcesDep
from api.resources import Resources
from core.records import accounts, audit
from core.records.accounts import Account

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

LONGEST_NAME = 200
DAY_S = 86_400
LASTS_DAYS = (30, 90, 365)  # that a key may be made for; otherwise until it is revoked


class Sought(BaseModel):
    """Which entries of the audit; what is empty does not count. since and until: days, both included."""

    action: str = Field("", max_length=64)
    target: str = Field("", max_length=255)
    key_id: str = Field("", max_length=64)
    since: str = Field("", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    until: str = Field("", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    after: str | None = Field(None, max_length=255)

    def said(self) -> dict[str, str]:
        """The fields that somebody has filled in."""
        return {name: value for name, value in self.model_dump(exclude={"after"}).items() if value}


@router.get("/keys", response_model=None)
def keys(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The project's keys, newest first."""
    return _keys(request, account, resources, after=after)


@router.post("/keys", response_model=None)
async def create_key(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """A further key, whose text is on this page and never again."""
    form = await form_of(request)
    name, days = form.get("name", "").strip(), form.get("days", "")
    if not account.is_admin:
        raise errors.forbidden("Only an administrator's key may make others.")
    if not 0 < len(name) <= LONGEST_NAME:
        raise errors.bad_request("A key needs a name of at most 200 characters.", param="name")
    if days and days not in map(str, LASTS_DAYS):
        raise errors.bad_request("A key lasts 30, 90 or 365 days, or until it is revoked.", param="days")
    lasts_s = float(days) * DAY_S if days else None
    text = await run_sync(
        lambda: _created(resources, account, name, is_admin=form.get("admin") == "on", lasts_s=lasts_s)
    )
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


@router.get("/audit", response_model=None)
def entries(
    request: Request, account: AccountDep, resources: ResourcesDep, sought: Annotated[Sought, Query()]
) -> Response:
    """Every privileged action of the project that is sought, newest first."""
    asked = {name: sought.said().get(name) for name in ("action", "target", "key_id")}
    since, until = _day(sought.since), _day(sought.until)
    with resources.database.session() as session, errors.unknown_cursor():
        page = audit.listed(
            session,
            account,
            after=sought.after,
            limit=50,
            since=since,
            until=None if until is None else until + DAY_S,
            **asked,
        )
        actions = audit.actions(session, account)
        names = {key.id: key.name for key in accounts.listed_keys(session, account, limit=200).rows}
    said = sought.said()
    return render(request, "audit.html", page=page, names=names, actions=actions, said=said, sought=urlencode(said))


def _day(text: str) -> float | None:
    """The beginning of a day in UTC, in seconds since 1970. Raises ClientError 400 for a day that is none."""
    if not text:
        return None
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%d")))
    except ValueError:
        raise errors.bad_request("There is no such day.", param="since", code="invalid_value") from None


def _keys(
    request: Request, account: Account, resources: Resources, *, after: str | None = None, text: str | None = None
) -> Response:
    with resources.database.session() as session, errors.unknown_cursor():
        page = accounts.listed_keys(session, account, after=after)
    return render(
        request,
        "keys.html",
        page=page,
        text=text,
        own=account.key_id,
        may=account.is_admin,
        lasts=LASTS_DAYS,
        now=time.time(),
    )


def _created(resources: Resources, account: Account, name: str, *, is_admin: bool, lasts_s: float | None) -> str:
    environment = resources.settings.environment
    with resources.database.writing() as session:
        _, text = accounts.create_key(
            session, account, name=name, environment=environment, is_admin=is_admin, expires_after_s=lasts_s
        )
        return text
