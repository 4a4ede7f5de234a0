"""What stands before every route: whose key it is, whether it may ask now, and a body that is bounded, strict JSON.

A browser that is signed in to the dashboard may ask in its key's place (api/visits.py).

A router's routes are Guarded unless the router says otherwise; main.py refuses to start with any that is not and ought
to be. The key is checked before a byte of the body is read.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from anyio.to_thread import run_sync
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from api import errors, visits
from api.resources import resources_of
from core.data.json_lines import MalformedLineError, parse, see
from core.records import accounts
from core.records.accounts import Account
from core.records.database import Database

MAX_KEY_CHARACTERS = 256


class StrictRequest(Request):
    """A request whose body is counted as it comes, and whose JSON holds finite numbers, whole characters, no abyss."""

    max_body_bytes: int

    async def body(self) -> bytes:
        """The whole body. Raises ClientError 413 at the first byte too many."""
        if not hasattr(self, "_body"):
            body = bytearray()
            async for chunk in self.stream():
                body += chunk
                if len(body) > self.max_body_bytes:
                    raise errors.too_large(self.max_body_bytes)
            self._body = bytes(body)
        return self._body

    async def json(self) -> Any:  # noqa: ANN401
        """The body's value. Raises ClientError 400."""
        try:
            value = parse(await self.body())
            see(value)
        except MalformedLineError as error:
            param = error.field.strip("/").replace("/", ".") or None
            raise errors.bad_request(
                f"The body is not JSON as it should be: {error.message}", param=param, code="invalid_json"
            ) from None
        return value


class Guarded(APIRoute):
    """A route that answers only to the bearer of a key, or to a browser that one is signed in at."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's hook: wraps what it would have run."""
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            resources = resources_of(request)
            account = await run_sync(_asker, request)
            request.state.account = account
            allowance = resources.limiter.take(account.project_id)
            request.state.headers.update(allowance.headers())
            if allowance.wait_s:
                raise errors.rate_limited(allowance.wait_s)
            strict = StrictRequest(request.scope, request.receive)
            strict.max_body_bytes = resources.settings.max_body_bytes
            return await answer(strict)

        return guarded


def _asker(request: Request) -> Account:
    """Whose request it is. A key that is shown counts before a cookie, which must be meant where it changes things."""
    if "authorization" not in request.headers:
        visitor = visits.find_visitor(request)
        if visitor:
            if request.method not in visits.SAFE:
                visits.must_mean_it(request, request.headers.get(visits.CSRF_HEADER))
            return visitor.account
    return _account(resources_of(request).database, _bearer(request))


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise errors.unauthorized("You did not provide an API key: send it in the header Authorization: Bearer KEY.")
    if len(key) > MAX_KEY_CHARACTERS or not key.isascii():
        raise errors.unauthorized("Incorrect API key provided.")
    return key


def _account(database: Database, key: str) -> Account:
    with database.session() as session:
        account = accounts.account_of(session, key)
    if account is None:
        raise errors.unauthorized("Incorrect API key provided.")
    if not account.was_used_lately:
        accounts.mark_used(database, account)
    return account
