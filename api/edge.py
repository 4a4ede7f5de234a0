"""The outermost layer: gives each request an id, times it, counts it, and lets no failure out but as our own error."""

import time
from typing import Any

import structlog
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from core.records.housekeeping import Kept
from core.records.tables import new_id

log = structlog.get_logger()

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"})
_SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Metrics:
    """What /metrics shows. Labels come from our own lists, never from a client's words."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("graft_http_requests_total", "Answers given.", labels, registry=self.registry)
        self.seconds = Histogram("graft_http_request_seconds", "Until the last byte.", labels, registry=self.registry)
        self.tokens = Counter("graft_tokens_total", "Tokens read and written.", ("direction",), registry=self.registry)
        self.migrations = Counter("graft_migrations_total", "Streams moved to another engine.", registry=self.registry)
        self.events = Counter("graft_events_removed_total", "Events of old jobs removed.", registry=self.registry)
        self.blobs = Counter("graft_blobs_removed_total", "Blobs removed for good.", registry=self.registry)
        self.freed = Counter("graft_bytes_removed_total", "Bytes that this freed.", registry=self.registry)

    def tell(self, kept: Kept) -> None:
        """Count what a round of the housekeeper removed."""
        self.events.inc(kept.events)
        self.blobs.inc(kept.blobs.removed)
        self.freed.inc(kept.blobs.removed_bytes + kept.blobs.unfinished_bytes)


class Edge:
    """ASGI middleware. request.state holds request_id and headers, which join those of the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from its first byte to the last of its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"], state["headers"] = new_id("req_"), {}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                took_ms = round((time.monotonic() - began) * 1000)
                ours = {**_SECURITY, "x-request-id": state["request_id"], "openai-processing-ms": str(took_ms)}
                headers = MutableHeaders(scope=message)
                for header, text in {**ours, **state["headers"]}.items():
                    headers[header] = text
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            log.exception("request.failed", request_id=state["request_id"], route=_route(scope))
            if status:
                raise  # the answer has begun: closing the connection is all that is left to tell
            problem = errors.server_error("The server failed at this request. It has been logged.", is_final=False)
            await problem.response()(scope, receive, send_with_headers)
        finally:
            self._count(scope, status, time.monotonic() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        labels = (method, _route(scope), str(status))
        self.metrics.requests.labels(*labels).inc()
        self.metrics.seconds.labels(*labels).observe(seconds)


def _route(scope: Scope) -> str:
    """The path as declared, such as /v1/files/{file_id}: one of a few, whatever was asked for."""
    route = scope.get("route")
    return route.path if isinstance(route, APIRoute) else "none"
