"""GET /v1/fine_tuning/jobs/{job_id}/stream: what happens to a job, as it happens, as server-sent events.

Each event carries its number. Whoever comes back with the last number that he has, as browsers do by themselves, is
told what came after it: nothing twice, nothing left out.
"""

import json
import time
from collections.abc import AsyncIterator, Sequence

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from api import errors, shapes, sse
from api.deps import AccountDep, After, OwnedJob, ResourcesDep
from api.guard import Guarded
from api.resources import Resources
from core.records import jobs
from core.records.accounts import Account
from core.records.tables import TERMINAL_STATES, Job, JobEvent

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Guarded)

LOOK_S = 0.5
PING_S = 15.0
LASTS_S = 900.0  # then the client comes again, and its key is looked at again
RETRY_MS = 1000
MANY = 200
END = b"event: end\ndata: [DONE]\n\n"


@router.get("/{job_id}/stream", response_model=None)
def stream(
    request: Request, job: OwnedJob, account: AccountDep, resources: ResourcesDep, after: After = None
) -> StreamingResponse:
    """The job's events from its beginning, or behind the one that Last-Event-ID or after names; then those to come."""
    last = request.headers.get("last-event-id") or after
    number = 0 if last is None else shapes.event_number(last)
    if number is None:
        raise errors.bad_request("after: this is no event's id", param="after", code="invalid_value")
    told = _told(resources, account, job.id, number)
    return StreamingResponse(told, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _told(resources: Resources, account: Account, job_id: str, number: int) -> AsyncIterator[bytes]:
    """Ends with the job, once all is told, or after LASTS_S."""
    yield b"retry: %d\n\n" % RETRY_MS
    began_at = said_at = time.monotonic()
    while time.monotonic() - began_at < LASTS_S:
        is_over, events = await run_sync(_news, resources, account, job_id, number)
        for event in events:
            number = event.id
            content = json.dumps(shapes.event(event), ensure_ascii=False, separators=(",", ":"))
            yield f"id: {shapes.event_id(number)}\ndata: {content}\n\n".encode()
        if is_over and not events:
            yield END
            return
        if events:
            said_at = time.monotonic()
            continue
        if time.monotonic() - said_at >= PING_S:
            said_at = time.monotonic()
            yield sse.PING
        await anyio.sleep(LOOK_S)


def _news(resources: Resources, account: Account, job_id: str, number: int) -> tuple[bool, Sequence[JobEvent]]:
    """Whether the job has ended, and some events behind a number. Blocking."""
    with resources.database.session() as session:
        job: Job | None = jobs.find(session, account, job_id)
        return job is None or job.state in TERMINAL_STATES, jobs.events_behind(
            session, account, job_id, number, limit=MANY
        )
