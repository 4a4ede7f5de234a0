"""What one process of the front end holds open, made at its start and closed at its end."""

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from api.edge import Metrics
from api.engine_client import EngineClient
from api.limits import RateLimiter
from api.queue import Queue
from core.blobs import BlobStore
from core.records.database import Database
from core.settings import Settings


@dataclass(frozen=True)
class Resources:
    """Shared by all requests; every part may be used from several threads."""

    settings: Settings
    database: Database
    blobs: BlobStore
    queue: Queue
    engines: EngineClient
    limiter: RateLimiter
    sign_ins: RateLimiter
    metrics: Metrics

    @property
    def upload_dir(self) -> Path:
        """Where uploads lie until they are whole and checked."""
        return self.settings.data_dir.resolve() / "uploads"


def resources_of(request: Request) -> Resources:
    """Those of the application that answers."""
    resources: Resources = request.app.state.resources
    return resources
