"""POST /v1/fine_tuning/jobs/{job_id}/pause, /resume and /retry: a job rests, goes on, is done once more."""

from collections.abc import Callable

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse

from api import errors, idempotency, shapes
from api.deps import AccountDep, OwnedJob, ResourcesDep
from api.estimating import estimated, must_fit
from api.guard import Guarded
from api.idempotency import Write
from api.job_answers import ring, shape_of
from api.job_plan import Plan, must_be_a_base
from api.resources import Resources
from core.records import adapters, datasets, jobs
from core.records.accounts import Account
from core.records.tables import TERMINAL_STATES, File, Job
from core.specs.estimate import Estimate
from core.specs.training import TrainSpec

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Guarded)

_ROUTE = "fine_tuning.jobs.retry"


@router.post("/{job_id}/pause", response_model=None)
def pause(job: OwnedJob, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """A waiting job rests at once; a running one saves a checkpoint first and frees its trainer."""
    try:
        return _moved(resources, account, job, jobs.pause)
    except jobs.NotPausable:
        message = "The job has ended, or is about to be cancelled: it cannot be paused."
        raise errors.conflict(message, code="job_not_pausable") from None


@router.post("/{job_id}/resume", response_model=None)
def resume(job: OwnedJob, account: AccountDep, resources: ResourcesDep) -> JSONResponse:
    """It waits again, and goes on from its checkpoint as if it had never stopped."""
    try:
        shape = _moved(resources, account, job, jobs.resume)
    except jobs.NotResumable:
        message = "The job is not paused: there is nothing to resume. One that has ended can be retried."
        raise errors.conflict(message, code="job_not_resumable") from None
    is_waiting = shape["status"] == "queued"
    return JSONResponse(shape, background=BackgroundTask(ring, resources, job.id) if is_waiting else None)


@router.post("/{job_id}/retry", response_model=None)
async def retry(request: Request, job: OwnedJob, account: AccountDep, resources: ResourcesDep) -> JSONResponse:
    """A new job with every value of one that has ended, its seed too; once, however often the client has to ask."""
    write = idempotency.write_of(request, account, _ROUTE, job.id.encode())
    planned = await run_sync(_planned, resources, account, job)
    foretold = await estimated(resources, planned)
    if foretold is not None:
        must_fit(foretold)
    status, shape, is_new = await run_sync(_retried, resources, account, job, foretold, write)
    if is_new:
        return JSONResponse(shape, background=BackgroundTask(ring, resources, shape["id"]))
    return JSONResponse(shape, status, headers={"idempotency-replayed": "true"})


def _moved(
    resources: Resources, account: Account, job: Job, move: Callable[[Session, Account, str], Job | None]
) -> shapes.Shape:
    with resources.database.writing() as session:
        moved = move(session, account, job.id)
        if moved is None:
            raise errors.job_not_found(job.id)
        return shape_of(session, account, moved)


def _planned(resources: Resources, account: Account, job: Job) -> Plan:
    """What would run, all of it still there. Raises ClientError 409 before the job's end, 400 for what has gone."""
    if job.state not in TERMINAL_STATES:
        raise errors.conflict("The job has not ended: there is nothing to retry.", code="job_not_retryable")
    must_be_a_base(resources, job.base_model)
    spec = TrainSpec.model_validate(job.spec)
    named = (
        (spec.continue_from, spec.continue_from_sha256, "continue_from"),
        (spec.method.starts_from, spec.init_adapter_sha256, "peft.init_adapter"),
    )
    with resources.database.session() as session:
        training_file = _file(session, account, job.training_file_id, "training_file")
        validation_id = job.validation_file_id
        validation_file = _file(session, account, validation_id, "validation_file") if validation_id else None
        for name, sha256, param in named:
            if name is not None:
                _must_be_there(session, account, name, sha256, param)
    return Plan(spec, training_file, validation_file)


def _file(session: Session, account: Account, file_id: str, param: str) -> File:
    file = datasets.find(session, account, file_id)
    if file is None:
        message = f"{param}: the job's file {file_id} was deleted; upload it and make a new job"
        raise errors.bad_request(message, param=param, code="file_not_found")
    return file


def _must_be_there(session: Session, account: Account, name: str, sha256: str | None, param: str) -> None:
    found = adapters.resolve(session, account, name, base_models=())
    if found is None or found.sha256 != sha256:
        message = f"{param}: the model that the job started from, {name}, is no longer there"
        raise errors.bad_request(message, param=param, code="model_not_found")


def _retried(
    resources: Resources, account: Account, job: Job, foretold: Estimate | None, write: Write
) -> tuple[int, shapes.Shape, bool]:
    """The status, the new job's object, and whether it was made now."""
    with resources.database.writing() as session:
        answered = write.answered(session, account)
        if answered is not None:
            return answered.status, answered.body, False
        estimate = None if foretold is None else foretold.model_dump(mode="json")
        try:
            most = resources.settings.max_attempts
            again = jobs.retry(session, account, job, max_attempts=most, estimate=estimate)
        except LookupError:
            raise errors.bad_request("A file of this job was deleted just now.", code="file_not_found") from None
        shape = shape_of(session, account, again)
        write.keep(session, account, shape)
        return 200, shape, True
