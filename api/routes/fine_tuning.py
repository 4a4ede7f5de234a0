"""/v1/fine_tuning/jobs: made, looked at, cancelled. The row is committed first, then the bell is rung."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from sqlalchemy import Select, select
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse

from api import errors, idempotency, shapes
from api.deps import AccountDep, After, OwnedJob, ResourcesDep
from api.estimating import estimated, must_fit
from api.guard import Guarded
from api.idempotency import Write
from api.job_answers import ring, shape_of, shapes_of
from api.job_plan import Plan, plan
from api.job_request import JobRequest
from api.resources import Resources
from core.records import jobs
from core.records.accounts import Account
from core.records.pages import page
from core.records.scope import of
from core.records.tables import Idempotency, Job
from core.specs.estimate import Estimate

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Guarded)

Limit = Annotated[int, Query(ge=1, le=100)]
_ROUTE = "fine_tuning.jobs"


@router.post("", response_model=None)
async def create(request: Request, body: JobRequest, account: AccountDep, resources: ResourcesDep) -> JSONResponse:
    """Makes a job, once, however often the client has to ask."""
    write = idempotency.write_of(request, account, _ROUTE, await request.body())
    answered = await run_sync(_answered, resources, account, write)
    if answered is None:
        planned = await run_sync(plan, resources, account, body)
        foretold = await estimated(resources, planned)
        if foretold is not None:
            must_fit(foretold)
        job = await run_sync(_create, resources, account, body, (planned.settled(foretold), foretold), write)
        if isinstance(job, dict):
            return JSONResponse(job, background=BackgroundTask(ring, resources, job["id"]))
        answered = job
    return JSONResponse(answered.body, answered.status, headers={"idempotency-replayed": "true"})


@router.get("", response_model=None)
def list_jobs(
    request: Request, account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 20
) -> shapes.Shape:
    """The project's jobs, newest first. metadata[key]=text keeps those that bear it, metadata=null those without."""
    found = _with_metadata(select(Job).where(*of(Job, account)), request)
    with resources.database.session() as session, errors.unknown_cursor():
        rows = page(session, found, [Job.created_at, Job.id], after=after, limit=limit)
        return shapes_of(session, account, rows)


@router.get("/{job_id}", response_model=None)
def retrieve(job: OwnedJob, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """One job."""
    with resources.database.session() as session:
        return shape_of(session, account, job)


@router.post("/{job_id}/cancel", response_model=None)
def cancel(job: OwnedJob, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """A waiting job is cancelled at once; a running one as soon as its trainer hears of it."""
    try:
        with resources.database.writing() as session:
            cancelled = jobs.cancel(session, account, job.id)
            if cancelled is None:
                raise errors.job_not_found(job.id)
            return shape_of(session, account, cancelled)
    except jobs.NotCancellable:
        raise errors.conflict("The job has ended: there is nothing to cancel.", code="job_not_cancellable") from None


@router.get("/{job_id}/events", response_model=None)
def events(
    job: OwnedJob, account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 20
) -> shapes.Shape:
    """What happened to it, newest first."""
    number = None if after is None else shapes.event_number(after)
    with resources.database.session() as session, errors.unknown_cursor():
        if after is not None and number is None:
            raise errors.bad_request("after: this is no event's id", param="after", code="invalid_value")
        rows = jobs.events(session, account, job.id, after=number, limit=limit)
    return shapes.listed(rows, shapes.event)


@router.get("/{job_id}/checkpoints", response_model=None)
def checkpoints(
    job: OwnedJob, account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 10
) -> shapes.Shape:
    """Those that can be used as models, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        rows = jobs.checkpoints(session, account, job.id, after=after, limit=limit)
    return shapes.listed(rows, shapes.checkpoint)


def _answered(resources: Resources, account: Account, write: Write) -> Idempotency | None:
    with resources.database.writing() as session:
        return write.answered(session, account)


def _create(
    resources: Resources, account: Account, body: JobRequest, settled: tuple[Plan, Estimate | None], write: Write
) -> shapes.Shape | Idempotency:
    """The new job's object, or the answer that the same write got meanwhile."""
    planned, foretold = settled
    with resources.database.writing() as session:
        answered = write.answered(session, account)
        if answered is not None:
            return answered
        try:
            job = jobs.create(
                session,
                account,
                spec=planned.spec,
                request=body.model_dump(mode="json", exclude_unset=True),
                training_file_id=planned.training_file.id,
                validation_file_id=planned.validation_file.id if planned.validation_file else None,
                suffix=body.suffix,
                metadata=body.metadata,
                max_attempts=resources.settings.max_attempts,
                estimate=None if foretold is None else foretold.model_dump(mode="json"),
            )
        except LookupError:
            raise errors.bad_request("A file of this job was deleted just now.", code="file_not_found") from None
        shape = shape_of(session, account, job)
        write.keep(session, account, shape)
        return shape


def _with_metadata(found: Select[Job], request: Request) -> Select[Job]:
    for key, text in request.query_params.multi_items():
        if key == "metadata" and text == "null":
            found = found.where(Job.job_metadata.is_(None))
        elif key.startswith("metadata[") and key.endswith("]"):
            name = key[len("metadata[") : -1]
            if not 0 < len(name) <= 64 or any(character in name for character in '"\\$[]{}'):  # noqa: PLR2004
                raise errors.bad_request("metadata: this key cannot be searched for", param="metadata")
            found = found.where(Job.job_metadata[name].as_string() == text)
    return found
