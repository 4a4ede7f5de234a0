"""The front end's application: wiring only. `uvicorn --factory api.main:create_app` reads the settings itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from api import errors, logs
from api.admin import house as admin
from api.admin.door import Page
from api.edge import Edge, Metrics
from api.engine_client import EngineClient
from api.engine_directory import EngineDirectory
from api.engine_metrics import EngineCollector
from api.guard import Guarded
from api.limits import RateLimiter
from api.queue import Queue
from api.resources import Resources
from api.routes import (
    account,
    adapter_versions,
    adapters,
    chat,
    classify,
    compare,
    completions,
    embeddings,
    estimate,
    evaluation_rows,
    files,
    fine_tuning,
    health,
    job_metrics,
    job_moves,
    job_stream,
    models,
    preview,
    workers,
)
from core.blobs import open_store
from core.records.database import Database
from core.records.housekeeping import Housekeeper
from core.records.sweeper import Sweeper
from core.settings import Settings

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics"})
SIGN_INS, SIGN_IN_WINDOW_S = 10, 900.0  # attempts from one address that may fail within a while


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Its database is at its present revision already: `graft up` and `graft migrate` see to that."""
    logs.configure()
    settings = settings or Settings()
    resources = open_resources(settings)
    app = FastAPI(
        title="Graft",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.resources = resources
    app.router.route_class = Guarded
    of_models = (chat, completions, embeddings, classify, compare)
    of_jobs = (fine_tuning, job_moves, job_stream, job_metrics, estimate, preview)
    of_operators = (workers, account)
    of_data = (files, evaluation_rows)
    for routes in (health, *of_data, *of_jobs, models, adapter_versions, adapters, *of_models, *of_operators):
        app.include_router(routes.router)
    app.add_middleware(Edge, metrics=resources.metrics)
    for router in admin.ROUTERS:
        app.include_router(router)
    errors.install(app)
    refuse_open_doors(app)
    return app


def open_resources(settings: Settings) -> Resources:
    """Opens what the settings name; connects to nothing yet but the file system."""
    metrics = Metrics()
    database = Database(settings.database)
    metrics.registry.register(EngineCollector(database))
    engines = EngineClient(EngineDirectory(database), settings.engine_token, on_migration=metrics.migrations.inc)
    return Resources(
        settings=settings,
        database=database,
        blobs=open_store(settings),
        queue=Queue(settings),
        engines=engines,
        limiter=RateLimiter(settings.requests_per_minute),
        sign_ins=RateLimiter(SIGN_INS, window_s=SIGN_IN_WINDOW_S),
        metrics=metrics,
    )


def refuse_open_doors(app: FastAPI) -> None:
    """Raises ValueError for a route that asks for no key and is not one of PUBLIC."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, Guarded | Page) and getattr(route, "path", "") not in PUBLIC:
            raise ValueError(f"{route} would answer without a key: give its router route_class=Guarded")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    resources: Resources = app.state.resources
    sweeper = Sweeper(resources.database, resources.queue.ring, resources.settings)
    keeper = Housekeeper(resources.database, resources.blobs, resources.settings, tell=resources.metrics.tell)
    sweeper.start()
    keeper.start()
    try:
        yield
    finally:
        await run_sync(keeper.stop)
        await run_sync(sweeper.stop)
        await resources.engines.close()
        resources.queue.close()
        resources.database.close()
