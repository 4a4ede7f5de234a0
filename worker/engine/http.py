"""The engine's HTTP: POST /generate (frames as JSON lines), /measure, /preview, /inspect; GET /live, /ready, /status.

A reader can neither slow the step loop nor outlive its interest: frames wait in a box that their number bounds, and
closing the connection takes the row out of the next step. A blank line is a sign of life while a row waits.
"""

import asyncio
import hmac
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import structlog
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from core.specs.generation import Frame, GenerateSpec, MeasureSpec
from core.specs.inspection import Inspected, InspectSpec
from core.specs.preview import Preview, PreviewSpec
from core.specs.spec import Spec
from worker.engine.engine import Draining, Engine
from worker.engine.intake import Intake, Refused, check_base_model
from worker.engine.scheduler import Overloaded
from worker.engine.sequences import Sequence

log = structlog.get_logger()

S = TypeVar("S", bound=Spec)
SIGN_OF_LIFE_S = 10.0
READER_S = 60.0  # a reader that takes nothing for so long is gone
AWAY = Refused(503, "engine_unavailable", "the engine is starting or stopping; try another")


@dataclass
class Desk:
    """What the routes share. engine and intake are None until the base model is open."""

    base_model: str
    token: str
    max_body_bytes: int
    measure: Callable[[MeasureSpec], dict[str, object]]
    preview: Callable[[PreviewSpec], Preview]
    inspect: Callable[[InspectSpec], Inspected]
    engine: Engine | None = None
    intake: Intake | None = None
    is_draining: bool = False
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="encode"))
    measuring: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="measure"))

    @property
    def is_ready(self) -> bool:
        """Whether new rows are welcome."""
        return self.engine is not None and self.engine.is_alive and not self.is_draining

    def take_no_more(self) -> None:
        """Rows under way end here, others go elsewhere."""
        self.is_draining = True
        if self.engine is not None:
            self.engine.drain(0)


class Box:
    """Frames between the step loop, which never waits, and one reader. At most as many as the row has tokens."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: deque[Frame] = deque()
        self._has_some = asyncio.Event()

    def put(self, frame: Frame) -> None:
        """From any thread."""
        self._frames.append(frame)
        self._loop.call_soon_threadsafe(self._has_some.set)

    async def take(self) -> list[Frame]:
        """All that is there, at least one."""
        await self._has_some.wait()
        self._has_some.clear()
        taken = []
        while self._frames:
            taken.append(self._frames.popleft())
        return taken


class FrameStream(Response):
    """One row's frames, until its last or until the reader leaves."""

    media_type = "application/x-ndjson"

    def __init__(self, box: Box, engine: Engine, key: int) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._box, self._engine, self._key = box, engine, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs until the stream ends, whoever ends it; then the row is gone from the engine."""
        del scope
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._engine.cancel(self._key)
            leaving.cancel()
            writing.cancel()
            ends = await asyncio.gather(writing, leaving, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, OSError | TimeoutError):
                raise end

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        is_over = False
        while not is_over:
            frames = await self._frames()
            lines = [f.model_dump_json(exclude_none=True).encode() + b"\n" for f in frames] or [b"\n"]
            is_over = any(f.fin is not None or f.error is not None for f in frames)
            async with asyncio.timeout(READER_S):
                await send({"type": "http.response.body", "body": b"".join(lines), "more_body": not is_over})

    async def _frames(self) -> list[Frame]:
        """The next ones; none after a while without any, as long as the step loop turns."""
        while True:
            try:
                return await asyncio.wait_for(self._box.take(), SIGN_OF_LIFE_S)
            except TimeoutError:
                if self._engine.is_alive:
                    return []


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def create_app(desk: Desk) -> Starlette:
    """The application. Every route but /live and /ready wants the bearer token."""

    async def generate(request: Request) -> Response:
        spec = await _spec(request, GenerateSpec, desk.max_body_bytes)
        engine, intake = desk.engine, desk.intake
        if engine is None or intake is None or not desk.is_ready:
            raise AWAY
        box = Box(asyncio.get_running_loop())
        sequence = await _in(desk.encoding, lambda: intake.sequence(spec, box.put))
        _submit(engine, sequence)
        return FrameStream(box, engine, sequence.key)

    async def measure(request: Request) -> Response:
        spec = await _asked(request, MeasureSpec, desk)
        return JSONResponse(await _in(desk.measuring, lambda: desk.measure(spec)))

    async def preview(request: Request) -> Response:
        spec = await _asked(request, PreviewSpec, desk)
        found = await _in(desk.measuring, lambda: desk.preview(spec))
        return JSONResponse(found.model_dump(mode="json"))

    async def inspect(request: Request) -> Response:
        spec = await _asked(request, InspectSpec, desk)
        inspected = await _in(desk.measuring, lambda: desk.inspect(spec))
        return JSONResponse(inspected.model_dump(mode="json"))

    return Starlette(
        routes=[
            Route("/generate", _known(desk, generate), methods=["POST"]),
            Route("/measure", _known(desk, measure), methods=["POST"]),
            Route("/preview", _known(desk, preview), methods=["POST"]),
            Route("/inspect", _known(desk, inspect), methods=["POST"]),
            *_states(desk),
        ],
        exception_handlers={Refused: _answer, Exception: _answer_failure},
    )


def _states(desk: Desk) -> list[Route]:
    """Where people and supervisors look."""

    async def status(_: Request) -> Response:
        about = {"base_model": desk.base_model, "is_ready": desk.is_ready}
        return JSONResponse(about | (desk.engine.status() if desk.engine else {}))

    async def live(_: Request) -> Response:
        is_alive = desk.engine is None or desk.engine.is_alive
        return JSONResponse({"live": is_alive}, 200 if is_alive else 503)

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": desk.is_ready}, 200 if desk.is_ready else 503)

    return [Route("/status", _known(desk, status)), Route("/live", live), Route("/ready", ready)]


def _known(desk: Desk, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The route, for those who show the token."""
    wanted = f"Bearer {desk.token}".encode()

    async def guarded(request: Request) -> Response:
        shown = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(shown, wanted):
            raise Refused(401, "unauthorized", "show the engine's token")
        return await route(request)

    return guarded


async def _spec(request: Request, kind: type[S], max_bytes: int) -> S:
    """The body as a spec, counted while it comes. What it held is never repeated in an answer."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise Refused(413, "body_too_large", f"the body has more than {max_bytes} bytes")
    except ClientDisconnect as error:
        raise Refused(400, "invalid_request", "the body ended early") from error
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field_name = ".".join(map(str, first["loc"])) or None
        raise Refused(400, "invalid_request", first["msg"], field_name) from error


About = TypeVar("About", MeasureSpec, PreviewSpec, InspectSpec)


async def _asked(request: Request, kind: type[About], desk: Desk) -> About:
    """A question about this engine's base model, which is open."""
    spec = await _spec(request, kind, desk.max_body_bytes)
    check_base_model(spec.base_model, desk.base_model)
    if not desk.is_ready:
        raise AWAY
    return spec


T = TypeVar("T")


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _submit(engine: Engine, sequence: Sequence) -> None:
    try:
        engine.submit(sequence)
    except Overloaded:
        message = "the engine has no place left; try again shortly"
        raise Refused(503, "engine_overloaded", message, wait_s=engine.wait_s()) from None
    except Draining:
        raise AWAY from None


async def _answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    is_retryable = error.status == HTTPStatus.SERVICE_UNAVAILABLE
    content = {"code": error.code, "message": error.message, "param": error.param, "retryable": is_retryable}
    # Spread out, so that those who wait do not all come back at once.
    wait_s = math.ceil((error.wait_s or 2.0) * random.uniform(0.75, 1.25))  # noqa: S311 - only spread out
    headers = {"retry-after": str(wait_s)} if is_retryable else {}
    return JSONResponse({"error": content}, error.status, headers)


async def _answer_failure(_: Request, __: Exception) -> Response:
    content = {"code": "internal_error", "message": "the engine failed at this request", "param": None}
    return JSONResponse({"error": content | {"retryable": False}}, 500)
