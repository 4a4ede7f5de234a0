"""HTTP to engines: choose one, stream its frames, and go on at another when it dies. Owns what has been emitted."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx
import structlog
from pydantic import ValidationError

from api import errors
from api.engine_answers import EngineAwayError, EngineBusyError, EngineLostError, frame_of, lines_of, refusal_of
from api.engine_directory import EngineDirectory, precision_of
from core.records.tables import Presence
from core.specs.generation import Frame, FrameError, GenerateSpec, MeasureSpec
from core.specs.inspection import Inspected, InspectSpec
from core.specs.preview import Preview, PreviewSpec
from core.specs.spec import Spec

log = structlog.get_logger()

A = TypeVar("A", bound=Spec)

MAX_MIGRATIONS = 3
# An engine on a busy CPU may need long for a long prompt, but it is silent for a minute only when it is lost.
TIMEOUT = httpx.Timeout(60.0, connect=2.0)
MEASURE_TIMEOUT = httpx.Timeout(120.0, connect=2.0)
INSPECT_TIMEOUT = httpx.Timeout(300.0, connect=2.0)
RETURN_S = 30.0  # how long a stream that has begun waits for an engine to come back
LOOK_S = 0.25
SHORTEST_S = 0.001  # that an engine is given where no time is left: it says so itself
MAX_TRIES = 2  # engines that a new request is offered to


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
                problem = refusal_of(answer.status_code, answer.content)
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
            with self.directory.asking(engine):
                async with request as answer:
                    if answer.status_code != httpx.codes.OK:
                        raise refusal_of(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
                    expected = 0
                    async for line in lines_of(answer):
                        frame = frame_of(line, expected)
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
