"""/healthz, /readyz, /metrics: the only routes without a key. They name parts and states, nothing of a customer's."""

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from api.engine_directory import precision_of
from api.resources import Resources, resources_of
from core.records import presences

router = APIRouter()


@router.get("/healthz", response_model=None)
async def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> JSONResponse:
    """200 once every part is up: then a file can be uploaded, a job trained and its adapter asked. Else 503."""
    checks = await run_sync(_checks, resources_of(request))
    is_ready = all(checks.values())
    return JSONResponse({"status": "ready" if is_ready else "not_ready", "checks": checks}, 200 if is_ready else 503)


@router.get("/metrics", response_model=None)
def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(generate_latest(resources_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _checks(resources: Resources) -> dict[str, bool]:
    checks = {"api": True, "database": True, "queue": resources.queue.is_up(), "trainer": False, "engine": False}
    try:
        with resources.database.session() as session:
            session.execute(text("SELECT 1"))
            checks["trainer"] = bool(presences.alive(session, "trainer"))
            first = resources.settings.engine_precisions[0]  # the others may take their time
            engines = presences.alive(session, "engine")
            checks["engine"] = any(engine.is_ready and precision_of(engine) == first for engine in engines)
    except SQLAlchemyError:
        checks["database"] = False
    return checks
