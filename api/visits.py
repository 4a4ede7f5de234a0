"""A signed-in browser: who sits there by its cookie, and whether a page of ours meant what it asks.

The cookie opens the pages of /admin and, for their scripts, the routes of /v1. Whatever changes something must come
from a page of this very origin and show the token that only such a page was given.
"""

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from api import errors
from api.resources import Resources, resources_of
from core.records import sessions
from core.records.sessions import Visitor
from core.settings import Settings

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_TOKEN_CHARACTERS = 64
CSRF_HEADER = "x-csrf-token"


def find_visitor(request: Request) -> Visitor | None:
    """Who is signed in at the browser that asks, if anybody. Raises ClientError 400 at a foreign host. Blocking."""
    resources = resources_of(request)
    token = token_of(request)
    if not token:
        return None
    must_be_our_host(request)
    with resources.database.session() as session:
        visitor = sessions.visitor_of(session, token, idle_s=resources.settings.session_idle_s)
    if visitor and not visitor.was_seen_lately:
        sessions.mark_seen(resources.database, visitor)
    return visitor


def token_of(request: Request) -> str:
    """What the browser's cookie holds; "" without one."""
    token = request.cookies.get(_cookie(request), "")
    return token if len(token) <= MAX_TOKEN_CHARACTERS and token.isascii() else ""


def csrf_of(request: Request) -> str:
    """What a page must show to change anything: bound to the browser's session, told to our own pages only."""
    return hmac.new(token_of(request).encode(), b"csrf", hashlib.sha256).hexdigest()


def must_mean_it(request: Request, shown: str | None) -> None:
    """Raises ClientError 403 unless the request comes from a page of ours that shows its token."""
    must_be_of_our_origin(request)
    if not hmac.compare_digest((shown or "").encode(), csrf_of(request).encode()):
        raise errors.forbidden("The page's token is missing or old: load the page again.")


def must_be_of_our_origin(request: Request) -> None:
    """Raises ClientError 403 where another site's page asks, 400 at a foreign host."""
    must_be_our_host(request)
    scheme, _, place = request.headers.get("origin", "").partition("://")
    ours = {_host(request), urlsplit(resources_of(request).settings.public_url).netloc} - {""}
    if (
        scheme not in {"http", "https"}
        or place not in ours
        or request.headers.get("sec-fetch-site", "same-origin") != "same-origin"
    ):
        raise errors.forbidden("This was asked by a page of another site.")


def must_be_our_host(request: Request) -> None:
    """Raises ClientError 400 where the service is called by a name that may be anybody's (DNS rebinding)."""
    settings = resources_of(request).settings
    try:
        named = urlsplit(f"//{_host(request)}").hostname or ""
        if named not in {"localhost", urlsplit(settings.public_url).hostname}:
            ipaddress.ip_address(named)
    except ValueError:
        raise errors.bad_request(
            "The dashboard does not answer to this host's name: set GRAFT_PUBLIC_URL to the address in use."
        ) from None


def admit(resources: Resources, request: Request, response: Response, token: str) -> None:
    """Gives a browser its cookie."""
    settings = resources.settings
    response.set_cookie(
        _cookie(request),
        token,
        max_age=int(settings.session_s),
        path="/",
        secure=is_https(request, settings),
        httponly=True,
        samesite="strict",
    )


def dismiss(request: Request, response: Response) -> None:
    """Takes a browser's cookie away."""
    response.delete_cookie(
        _cookie(request), path="/", secure=is_https(request, resources_of(request).settings), httponly=True
    )


def is_https(request: Request, settings: Settings) -> bool:
    """Whether browsers reach us over TLS."""
    return request.url.scheme == "https" or settings.public_url.startswith("https:")


def _cookie(request: Request) -> str:
    return "__Host-graft" if is_https(request, resources_of(request).settings) else "graft_session"


def _host(request: Request) -> str:
    return request.headers.get("host", "")
