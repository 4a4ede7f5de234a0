"""What routes ask for by type: the process's resources, who asks, and rows that are the asker's own or do not exist."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Path, Query, Request

from api import errors
from api.inference import Target
from api.resources import Resources, resources_of
from core.records import adapters, datasets, jobs
from core.records.accounts import Account
from core.records.adapters import Model
from core.records.tables import File, Job
from core.specs.generation import AdapterRef
from core.specs.method import BasePrecision

ResourcesDep = Annotated[Resources, Depends(resources_of)]
Id = Annotated[str, Path(max_length=255)]
After = Annotated[str | None, Query(max_length=255)]


def _account(request: Request) -> Account:
    account: Account = request.state.account  # api/guard.py has put it there
    return account


AccountDep = Annotated[Account, Depends(_account)]


def _administrator(account: AccountDep) -> Account:
    if not account.is_admin:
        raise errors.forbidden("Only an administrator's key may do this.")
    return account


AdminDep = Annotated[Account, Depends(_administrator)]


def _owned_file(file_id: Id, account: AccountDep, resources: ResourcesDep) -> File:
    with resources.database.session() as session:
        file = datasets.find(session, account, file_id)
    if file is None:
        raise errors.file_not_found(file_id)
    return file


def _owned_job(job_id: Id, account: AccountDep, resources: ResourcesDep) -> Job:
    with resources.database.session() as session:
        job = jobs.find(session, account, job_id)
    if job is None:
        raise errors.job_not_found(job_id)
    return job


def _owned_model(model: Id, account: AccountDep, resources: ResourcesDep) -> Model:
    return find_model(resources, account, model)


OwnedFile = Annotated[File, Depends(_owned_file)]
OwnedJob = Annotated[Job, Depends(_owned_job)]
OwnedModel = Annotated[Model, Depends(_owned_model)]


def find_model(resources: Resources, account: Account, name: str) -> Model:
    """What a model's name means to the account. Raises ClientError 404. Blocking."""
    with resources.database.session() as session:
        model = adapters.resolve(session, account, name, base_models=resources.settings.base_names)
    if model is None:
        raise errors.model_not_found(name)
    return model


async def target_of(request: Request, name: str, base_precision: BasePrecision | None = None) -> Target:
    """What an engine is to be asked for, for the model that a request names. Raises ClientError 404.

    What answers is told and counted by its own name, by whichever it was called. An adapter is served on the base that
    it was trained on, unless the request chooses.
    """
    model = await run_sync(find_model, resources_of(request), request.state.account, name)
    precision = base_precision or model.base_precision
    if model.adapter_id is None or model.sha256 is None:
        return Target(model.name, model.base_model, None, precision)
    adapter = AdapterRef(id=model.adapter_id, sha256=model.sha256)
    return Target(model.name, model.base_model, adapter, precision, model.members)
