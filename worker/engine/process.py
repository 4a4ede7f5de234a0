"""The engine process: a socket, the base model, the step loop, a presence row, and an end in good order."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import structlog
import torch
import uvicorn

from core.blobs import open_store
from core.records import presences
from core.records.database import Database
from core.records.tables import new_id
from core.settings import Settings
from core.specs.generation import MeasureSpec
from core.specs.inspection import Inspected, InspectSpec
from core.specs.preview import Preview, PreviewSpec
from worker.engine.engine import Engine
from worker.engine.http import Desk, create_app
from worker.engine.opening import Opened, open_engine
from worker.engine.tiers import forget_deleted

log = structlog.get_logger()

BEAT_S = 2.0
DRAIN_S = 25.0  # for rows under way, once asked to stop
CLOSE_S = 3  # for streams to take their last frame
LOOP_DIED = 70  # exit status: start me again


class Server(uvicorn.Server):
    """Leaves signals to us: a request to stop drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class EngineProcess:
    """From the first beat to the exit status."""

    def __init__(self, settings: Settings, *, drain_s: float = DRAIN_S) -> None:
        self._settings, self._drain_s = settings, drain_s
        self._store = open_store(settings)
        self._db = Database(settings.database)
        self._id = new_id("engine-")
        self._details: dict[str, object] = {"base_precision": settings.engine_precision}
        self._stopping = asyncio.Event()
        self._status = 0
        self._desk = Desk(
            base_model=settings.default_base_model,
            token=settings.engine_token,
            max_body_bytes=settings.max_body_bytes,
            measure=self._measure,
            preview=self._preview,
            inspect=self._inspect,
        )
        self._opened: Opened | None = None

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT. The exit status: 0, or LOOP_DIED."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        listener = socket.create_server((self._settings.engine_host, self._settings.engine_port), backlog=256)
        url = self._settings.engine_url or f"http://{self._settings.engine_host}:{listener.getsockname()[1]}"
        server = Server(
            uvicorn.Config(
                create_app(self._desk),
                lifespan="off",
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        serving = asyncio.create_task(server.serve([listener]))
        beating = asyncio.create_task(self._beat(url))
        opening = asyncio.create_task(self._open())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({serving, opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()
                log.info("engine.ready", url=url, **self._details)
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(url)
        finally:
            server.should_exit = True
            beating.cancel()
            await asyncio.gather(serving, beating, return_exceptions=True)
            await asyncio.to_thread(self._leave)
        return self._status

    async def _open(self) -> None:
        self._opened = opened = await asyncio.to_thread(open_engine, self._settings, self._store)
        self._details = opened.details
        threading.Thread(target=self._turn, args=(opened.engine, asyncio.get_running_loop()), daemon=True).start()
        self._desk.intake, self._desk.engine = opened.intake, opened.engine

    def _turn(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        """The step loop's thread. If it dies, so does the process, once its rows have been sent elsewhere."""
        try:
            engine.run()
        except Exception:
            log.exception("engine.loop_died")
            self._status = LOOP_DIED
            loop.call_soon_threadsafe(self._stopping.set)

    def _measure(self, spec: MeasureSpec) -> dict[str, object]:
        assert self._opened is not None
        return self._opened.measure(spec)

    def _preview(self, spec: PreviewSpec) -> Preview:
        assert self._opened is not None
        return self._opened.preview(spec)

    def _inspect(self, spec: InspectSpec) -> Inspected:
        assert self._opened is not None
        return self._opened.inspect(spec)

    async def _drain(self, url: str) -> None:
        """No new rows; those under way get DRAIN_S, then go on elsewhere."""
        log.info("engine.draining")
        self._desk.is_draining = True
        await self._say(url)
        engine = self._desk.engine
        if engine is None or self._status:
            return
        if not await asyncio.to_thread(engine.drain, self._drain_s):
            log.warning("engine.drained_late")
        engine.stop()

    async def _beat(self, url: str) -> None:
        while True:
            await self._say(url)
            await asyncio.to_thread(self._forget_deleted)
            await asyncio.sleep(BEAT_S)

    async def _say(self, url: str) -> None:
        try:
            is_to_drain = await asyncio.to_thread(
                presences.beat,
                self._db,
                self._id,
                role="engine",
                is_ready=self._desk.is_ready,
                details=self._details | self._status_told(),
                url=url,
                base_model=self._settings.default_base_model,
            )
            if is_to_drain and not self._desk.is_draining:
                log.info("engine.draining")  # as an administrator asked; the process stays
                await asyncio.to_thread(self._desk.take_no_more)
        except Exception as error:  # noqa: BLE001 - rows go on without a database; the API notices the silence
            log.warning("engine.presence_failed", error=type(error).__name__)

    def _status_told(self) -> dict[str, object]:
        """For the front end's meters. Which adapters are in memory is asked at /status: they may be many."""
        engine = self._desk.engine
        return {"status": {k: v for k, v in engine.status().items() if k != "adapters"}} if engine else {}

    def _forget_deleted(self) -> None:
        """What was deleted from the records is freed here too, within a beat and the rows that still wear it."""
        if self._opened is None:
            return
        try:
            for digest in forget_deleted(self._db, self._opened.engine, self._opened.tiers):
                log.info("adapter.forgotten", sha256=digest)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("engine.forgetting_failed", error=type(error).__name__)

    def _leave(self) -> None:
        try:
            presences.leave(self._db, self._id)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("engine.presence_failed", error=type(error).__name__)
        self._db.close()


def configure_logs() -> None:
    """One JSON object a line on standard error. Tracebacks hold no local variables: prompts are among them."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def serve(settings: Settings) -> None:
    """Runs the process to its end and exits with its status."""
    configure_logs()
    if settings.threads:
        torch.set_num_threads(settings.threads)

    async def run() -> None:
        status = await EngineProcess(settings).run()
        # All is said and closed. A base model half opened, a file half measured or a broken device is not waited for.
        os._exit(status)

    asyncio.run(run())
