"""/admin/sign-in and what else needs no session: signing out, the files that pages load, language and colours."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from api import errors, visits
from api.admin.door import Page, Porch, form_of
from api.admin.render import LANGUAGES, THEMES, assets, render
from api.deps import ResourcesDep
from api.guard import MAX_KEY_CHARACTERS
from api.resources import Resources
from core.records import sessions

router = APIRouter(prefix="/admin", route_class=Porch, include_in_schema=False)
inside = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

YEAR_S = 365 * 86_400
Next = Annotated[str, Query(max_length=500)]


@router.get("/sign-in", response_model=None)
def sign_in(request: Request, next: Next = "/admin") -> Response:  # noqa: A002  # the query's name
    """A form for a key, or for the code behind the # of the link that the terminal shows."""
    return render(request, "sign_in.html", next=_inside(next), problem=None)


@router.post("/sign-in", response_model=None)
async def enter(request: Request, resources: ResourcesDep) -> Response:
    """Signs in. However a credential fails, the answer is the same."""
    form = await form_of(request)
    place = _inside(form.get("next", ""))
    who = request.client.host if request.client else ""
    allowance = resources.sign_ins.take(who)
    if allowance.wait_s:
        minutes = int(allowance.wait_s / 60) + 1
        return await run_sync(lambda: _again(request, place, 429, "Too many attempts: try again in {n} min.", minutes))
    token = await run_sync(_opened, resources, form.get("credential", "").strip())
    if token is None:
        return await run_sync(lambda: _again(request, place, 401, "This key or code opens nothing here."))
    resources.sign_ins.give_back(who)
    response = RedirectResponse(place, 303)
    visits.admit(resources, request, response, token)
    return response


@inside.post("/sign-out", response_model=None)
async def leave(request: Request, resources: ResourcesDep) -> Response:
    """Ends the session here and at the server."""
    await run_sync(_closed, resources, request.state.visitor)
    response = RedirectResponse("/admin/sign-in", 303)
    visits.dismiss(request, response)
    return response


@router.post("/preferences", response_model=None)
async def prefer(request: Request, resources: ResourcesDep) -> Response:
    """Remembers a language or colours in the browser."""
    form = await form_of(request)
    response = RedirectResponse(_inside(form.get("next", "")), 303)
    for name, choices in (("language", LANGUAGES), ("theme", THEMES)):
        if form.get(name) in choices:
            secure = visits.is_https(request, resources.settings)
            cookie = f"graft_{name}"
            response.set_cookie(cookie, form[name], YEAR_S, path="/admin", secure=secure, httponly=True, samesite="lax")
    return response


@router.get("/static/{name}", response_model=None)
def static(name: str, request: Request) -> Response:
    """A file that pages load."""
    if name not in assets():
        raise errors.not_found("There is no such file.")
    content, kind, version = assets()[name]
    request.state.headers["cache-control"] = "public, max-age=31536000, immutable"
    return Response(content, media_type=kind, headers={"etag": f'"{version}"'})


def _again(request: Request, place: str, status: int, problem: str, n: int = 0) -> Response:
    return render(request, "sign_in.html", status=status, next=place, problem=problem, n=n)


def _opened(resources: Resources, credential: str) -> str | None:
    if not credential or len(credential) > MAX_KEY_CHARACTERS or not credential.isascii():
        return None
    with resources.database.writing() as session:
        return sessions.open_session(session, credential, lasts_s=resources.settings.session_s)


def _closed(resources: Resources, visitor: sessions.Visitor) -> None:
    with resources.database.writing() as session:
        sessions.close_session(session, visitor)


def _inside(place: str) -> str:
    """A place of the dashboard; never another site's address."""
    is_ours = place == "/admin" or place.startswith(("/admin/", "/admin?"))
    return place if is_ours and "\\" not in place and "//" not in place and place.isprintable() else "/admin"
