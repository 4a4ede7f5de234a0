"""Answers that are worked at only while their reader is there. A gone reader cancels the work, streaming or not."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import structlog
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from api import errors, sse

log = structlog.get_logger()

PING_S = 15.0
WRITE_IDLE_S = 60.0  # a reader who takes nothing for so long is gone

Emit = Callable[[Mapping[str, object]], Awaitable[None]]


class WatchedJSON(Response):
    """A JSON object that work() makes."""

    def __init__(self, work: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, unless nobody waits any more."""
        answer: Response | None = None

        async def work() -> None:
            nonlocal answer
            try:
                answer = JSONResponse(await self._work())
            except errors.ClientError as error:
                answer = error.response()

        await while_listening(receive, work)
        if answer is not None:
            await answer(scope, receive, send)


class EventStream(Response):
    """Server-sent events that work(emit) makes, then [DONE]. What fails before the first event has its own status."""

    def __init__(self, work: Callable[[Emit], Awaitable[None]]) -> None:
        super().__init__(media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        del self.headers["content-length"]
        self._work = work
        self._has_begun = False
        self._wrote_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, unless nobody waits any more."""
        lock = anyio.Lock()

        async def write(content: bytes, *, is_last: bool = False) -> None:
            async with lock:
                with anyio.fail_after(WRITE_IDLE_S):
                    if not self._has_begun:
                        self._has_begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": content, "more_body": not is_last})
                self._wrote_at = anyio.current_time()

        async def emit(content: Mapping[str, object]) -> None:
            await write(sse.event(content))

        async def work() -> None:
            try:
                await self._work(emit)
                await write(sse.DONE, is_last=True)
            except errors.ClientError as error:
                if not self._has_begun:
                    await error.response()(scope, receive, send)
                    return
                await write(sse.event({"error": error.error}), is_last=True)
            except TimeoutError:
                log.info("client.stalled")
            except Exception:
                if not self._has_begun:
                    raise
                # A stream never just stops: its reader could take it for the end.
                log.exception("stream.failed")
                problem = errors.server_error("The server failed in the middle of this answer.")
                await write(sse.event({"error": problem.error}), is_last=True)

        async with anyio.create_task_group() as group:
            group.start_soon(self._ping, write)
            await while_listening(receive, work)
            group.cancel_scope.cancel()

    async def _ping(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Keeps middle-men from taking silence for death."""
        while True:
            await anyio.sleep(PING_S)
            if self._has_begun and anyio.current_time() - self._wrote_at >= PING_S:
                await write(sse.PING)


async def while_listening(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Runs work to its end, or until the client has gone: then it is cancelled and this returns all the same."""
    is_done = False

    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not is_done:
                log.info("client.gone")
                group.cancel_scope.cancel()

        group.start_soon(watch)
        await work()
        is_done = True
        group.cancel_scope.cancel()
