"""The dashboard's doors: a Page opens to a signed-in browser alone, a Porch to anybody; both only on our own terms.

No page runs or shows anything that is not ours: see POLICY. What fails is answered with a page, too.
"""

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote

from anyio.to_thread import run_sync
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import errors, visits
from api.admin.render import render
from api.guard import StrictRequest

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    # With no-referrer a browser says "Origin: null" of our own forms, and they could not be told from others'.
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
}
MAX_FORM_BYTES = 16 << 10


class Page(APIRoute):
    """A route of the dashboard. Who is not signed in is led to the sign-in, and from there back."""

    is_public: ClassVar[bool] = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's hook: wraps what it would have run."""
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            request.state.headers.update(HEADERS)
            request.state.visitor = None
            strict = StrictRequest(request.scope, request.receive)
            strict.max_body_bytes = MAX_FORM_BYTES
            try:
                return await self._admitted(strict) or await answer(strict)
            except errors.ClientError as problem:
                return await run_sync(failed, request, problem)
            except RequestValidationError:
                return await run_sync(failed, request, errors.not_found("There is no such page."))

        return guarded

    async def _admitted(self, request: StrictRequest) -> Response | None:
        """What is answered instead of the page, if anything. Raises ClientError."""
        visits.must_be_our_host(request)
        visitor = await run_sync(visits.find_visitor, request)
        request.state.visitor = visitor
        if visitor is not None:
            request.state.account = visitor.account
        elif not self.is_public:
            return to_sign_in(request)
        if request.method in visits.SAFE:
            return None
        visits.must_be_of_our_origin(request)
        if visitor is not None:
            visits.must_mean_it(request, (await form_of(request)).get("csrf"))
        return None


class Porch(Page):
    """A route of the dashboard that needs no signing in."""

    is_public = True


def to_sign_in(request: Request) -> Response:
    """Back to where the browser was, once somebody has signed in. A part of a page asks for the whole to be left."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    place = f"/admin/sign-in?next={quote(wanted)}"
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"hx-redirect": "/admin/sign-in"})
    return RedirectResponse(place, 303)


def failed(request: Request, problem: errors.ClientError) -> Response:
    """A page that says what was wrong. Blocking."""
    return render(
        request, "error.html", status=problem.status_code, code=problem.status_code, message=problem.error["message"]
    )


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a small form. Raises ClientError 413."""
    body = (await request.body()).decode(errors="replace")
    return {name: values[-1] for name, values in parse_qs(body, keep_blank_values=True, max_num_fields=50).items()}
