"""HTTP to engines: choose one, stream its frames, and go on at another when it dies. Owns what has been emitted."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx
import structlog
from pydantic import ValidationError

from api import errors
from api.engine_directory import EngineDirectory, precision_of
from core.records.tables import Presence
from core.specs.generation import Frame, FrameError, GenerateSpec, MeasureSpec
from core.specs.inspection import Inspected, InspectSpec
from core.specs.preview import Preview, PreviewSpec
from core.specs.spec import Spec

log = structlog.get_logger()

A = TypeVar("A", bound=Spec)

MAX_MIGRATIONS = 3
MAX_FRAME_BYTES = 4 << 20
# An engine on a busy CPU may need long for a long prompt, but it is silent for a minute only when it is lost.
TIMEOUT = httpx.Timeout(60.0, connect=2.0)
MEASURE_TIMEOUT = httpx.Timeout(120.0, connect=2.0)
INSPECT_TIMEOUT = httpx.Timeout(300.0, connect=2.0)
RETURN_S = 30.0  # how long a stream that has begun waits for an engine to come back
LOOK_S = 0.25
SHORTEST_S = 0.001  # that an engine is given where no time is left: it says so itself
LONGEST_WAIT_S = 60  # that clients are ever told
MAX_TRIES = 2  # engines that a new request is offered to


class EngineLostError(Exception):
    """The connection broke, or what came over it was no answer. The request may go on elsewhere.

    reason is for the log; error is what the engine itself said, if anything.
    """

    def __init__(self, reason: str, error: FrameError | None = None) -> None:
        super().__init__(reason)
        self.error = error


class EngineAwayError(Exception):
    """It could not even be reached, so it has nothing of the request."""


class EngineBusyError(Exception):
    """It takes no more requests now. wait_s: when it might, as it says itself."""

    def __init__(self, wait_s: int = 2) -> None:
        super().__init__(f"after {wait_s} s perhaps")
        self.wait_s = wait_s


@dataclass
class _Progress:
    """What has been said so far of one row."""

    began_at: float
    prompt_ids: tuple[int, ...] | None = None
    emitted: list[int] = field(default_factory=list)

    def resumed(self, spec: GenerateSpec) -> GenerateSpec:
        """The same request for an engine that is to go on where another stopped, in the time that is left."""
        if spec.queue.deadline_s is not None:
            left_s = max(SHORTEST_S, spec.queue.deadline_s - (anyio.current_time() - self.began_at))
            spec = spec.model_copy(update={"queue": spec.queue.model_copy(update={"deadline_s": left_s})})
        if self.prompt_ids is None:
            return spec
        ids = (*self.prompt_ids, *self.emitted)
        return spec.model_copy(
            update={"messages": None, "prompt": None, "prompt_ids": ids, "offset": len(self.emitted)}
        )


class EngineClient:
    """One a process. Closing a generator that generate() gave ends its request at the engine within a step."""

    def __init__(
        self,
        directory: EngineDirectory,
        token: str,
        *,
        on_migration: Callable[[], None] = lambda: None,
        return_s: float = RETURN_S,
    ) -> None:
        self.directory = directory
        self._on_migration = on_migration
        self._return_s = return_s
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )

    async def close(self) -> None:
        """Lets every connection go."""
        await self._http.aclose()

    async def generate(self, spec: GenerateSpec) -> AsyncGenerator[Frame, None]:
        """The frames of one row, ids and texts without gap or repetition, whichever engines they come from.

        Raises ClientError: 503 where no engine takes it, what an engine refuses, or 502 once MAX_MIGRATIONS are spent.
        """
        progress = _Progress(anyio.current_time())
        said: FrameError | None = None
        for migration in range(MAX_MIGRATIONS + 1):
            try:
                async with aclosing(self._on_any(spec, progress, is_patient=migration > 0)) as frames:
                    async for frame in frames:
                        yield frame
                        if frame.fin:
                            return
            except EngineLostError as error:
                said = error.error
                log.warning("engine.lost", request_id=spec.request_id, reason=str(error), emitted=len(progress.emitted))
                self._on_migration()
        raise errors.engine_failed(said.message if said else None, said.code if said else None)

    async def measure(self, spec: MeasureSpec) -> dict[str, Any] | None:
        """How long a dataset's examples are, as MeasureSpec says; None where no engine can tell now."""
        for engine in await self.directory.choices(spec.base_model, None, precision=None):
            try:
                answer = await self._http.post(
                    f"{engine.url}/measure", json=spec.model_dump(mode="json"), timeout=MEASURE_TIMEOUT
                )
                if answer.status_code == httpx.codes.OK:
                    measured: dict[str, Any] = answer.json()
                    return measured
                log.warning("measure.refused", status=answer.status_code)
            except (httpx.HTTPError, ValueError) as error:
                log.warning("measure.failed", error=type(error).__name__)
                self.directory.failed(engine)
        return None

    async def inspect(self, spec: InspectSpec) -> Inspected:
        """What a stranger's adapter is, as InspectSpec says. Raises ClientError: what an engine refuses, or 503."""
        engines = await self.directory.choices(spec.base_model, None, precision=spec.base_precision)
        return await self._answer(engines, "inspect", spec, Inspected, INSPECT_TIMEOUT)

    async def preview(self, spec: PreviewSpec) -> Preview:
        """What a dataset's first rows are, as PreviewSpec says. Raises ClientError: what an engine refuses, or 503."""
        engines = await self.directory.choices(spec.base_model, None, precision=None)
        return await self._answer(engines, "preview", spec, Preview, MEASURE_TIMEOUT)

    async def _answer(
        self, engines: Sequence[Presence], path: str, spec: Spec, kind: type[A], within: httpx.Timeout
    ) -> A:
        """The first answer that is one."""
        for engine in engines:
            try:
                asked = spec.model_dump(mode="json")
                answer = await self._http.post(f"{engine.url}/{path}", json=asked, timeout=within)
                if answer.status_code == httpx.codes.OK:
                    return kind.model_validate_json(answer.content)
                problem = _refusal(answer.status_code, answer.content)
                if isinstance(problem, errors.ClientError):
                    raise problem
                log.warning("engine.refused", asked=path, status=answer.status_code)
            except (httpx.HTTPError, ValidationError) as error:
                log.warning("engine.failed", asked=path, error=type(error).__name__)
                self.directory.failed(engine)
        raise errors.overloaded("No engine is ready for this base model.", code="engine_unavailable", wait_s=5)

    async def _on_any(
        self, spec: GenerateSpec, progress: _Progress, *, is_patient: bool
    ) -> AsyncGenerator[Frame, None]:
        """The frames of the first engine that takes the request.

        A new request passes by a busy engine for one other, once. One that has begun waits for an engine to return.
        """
        deadline = anyio.current_time() + (self._return_s if is_patient else 0.0)
        problem: errors.ClientError | None = None
        wait_s: int | None = None
        passed: set[str] = set()
        while is_patient or len(passed) < MAX_TRIES:
            engine = await self._next(spec, passed, is_patient=is_patient)
            if engine is None and anyio.current_time() >= deadline:
                break
            if engine is None:
                passed.clear()
                await anyio.sleep(LOOK_S)
                continue
            try:
                async with aclosing(self._on_one(engine, progress.resumed(spec), progress)) as frames:
                    async for frame in frames:
                        yield frame
            except EngineBusyError as busy:
                log.info("engine.busy", request_id=spec.request_id, engine=engine.id)
                wait_s = min(wait_s or busy.wait_s, busy.wait_s)
                problem = errors.overloaded("Every engine is busy: try again shortly.", wait_s=wait_s)
                passed.add(engine.id)
            except EngineAwayError:
                self.directory.failed(engine)
                passed.add(engine.id)
            except EngineLostError:
                self.directory.failed(engine)
                raise
            else:
                self.directory.answered(engine)
                return
        raise problem or await self._without_engine(spec)

    async def _next(self, spec: GenerateSpec, passed: set[str], *, is_patient: bool) -> Presence | None:
        adapter_id = spec.adapter.id if spec.adapter else None
        engines = await self.directory.choices(
            spec.base_model, spec.affinity or adapter_id, precision=spec.base_precision, is_awake=is_patient
        )
        return next((engine for engine in engines if engine.id not in passed), None)

    async def _without_engine(self, spec: GenerateSpec) -> errors.ClientError:
        """What a request meets that no engine took: none serves its base model, or none in its precision."""
        serving = {precision_of(e) for e in await self.directory.choices(spec.base_model, None, precision=None)}
        if not serving or spec.base_precision in serving:
            return errors.overloaded(
                "No engine is ready to answer for this model.", code="engine_unavailable", wait_s=5
            )
        return errors.overloaded(
            f"No engine that serves {spec.base_model} in {spec.base_precision} is ready; "
            f"base_precision may choose {', '.join(sorted(serving))}.",
            code="precision_unavailable",
            wait_s=5,
        )

    async def _on_one(self, engine: Presence, spec: GenerateSpec, progress: _Progress) -> AsyncGenerator[Frame, None]:
        """One engine's answer. Raises one of the three errors above, or the ClientError of a refusal."""
        try:
            request = self._http.stream("POST", f"{engine.url}/generate", json=spec.model_dump(mode="json"))
            async with request as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _refusal(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
                expected = 0
                async for line in _lines(answer):
                    frame = _frame(line, expected)
                    expected += 1
                    if progress.prompt_ids is None:
                        progress.prompt_ids = frame.prompt_ids
                    progress.emitted.extend(frame.ids)
                    yield frame
                    if frame.fin:
                        return
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise EngineAwayError from error
        except httpx.HTTPError as error:
            raise EngineLostError(type(error).__name__) from error
        raise EngineLostError("the stream ended before its end")


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Whole lines; what stands behind the last line break was cut off and is dropped."""
    rest = b""
    async for chunk in answer.aiter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_FRAME_BYTES:
            raise EngineLostError("a frame without end")
        for line in whole:
            if line.strip():
                yield line


def _frame(line: bytes, expected: int) -> Frame:
    try:
        frame = Frame.model_validate_json(line)
    except ValidationError as error:
        raise EngineLostError("a line that is no frame") from error
    if frame.seq != expected:
        raise EngineLostError(f"frame {frame.seq} where {expected} was due")
    if frame.error and frame.error.code == "engine_overloaded":
        raise EngineBusyError
    if frame.error and frame.error.retryable:
        raise EngineLostError(frame.error.code, frame.error)
    if frame.error:
        raise refused(frame.error)
    return frame


def refused(error: FrameError, status: int = 400) -> errors.ClientError:
    """An engine's no, in the client's terms: about a field where it names one, else our failure."""
    if error.code == "deadline_exceeded":
        return errors.too_late(error.message)
    if error.param is not None or error.code == "context_length_exceeded":
        return errors.bad_request(error.message, param=error.param, code=error.code)
    if 400 <= status < 500 and error.code == "invalid_request":  # noqa: PLR2004
        return errors.bad_request(error.message, code=error.code)
    return errors.server_error(error.message, code=error.code)


def _refusal(status: int, body: bytes, retry_after: str | None = None) -> Exception:
    """What an answer that is not 200 comes to."""
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return EngineBusyError(min(LONGEST_WAIT_S, int(retry_after)) if retry_after and retry_after.isdecimal() else 2)
    if status >= 500 or status in (401, 404):  # noqa: PLR2004
        return EngineLostError(f"status {status}")
    try:
        content = httpx.Response(status, content=body).json()["error"]
        known = {name: content.get(name) for name in ("code", "message", "param") if content.get(name) is not None}
        return refused(FrameError.model_validate(known), status)
    except (ValueError, KeyError, TypeError, AttributeError):
        return EngineLostError(f"status {status} without a reason")
