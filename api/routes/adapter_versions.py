"""/v1/adapters/{adapter}/versions, /aliases and /lineage: which version answers to a name, and where it comes from."""

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from api import errors, shapes
from api.adapter_answers import shape_of, shapes_of
from api.deps import AccountDep, Id, ResourcesDep
from api.guard import Guarded
from core.records import adapters, aliases
from core.records.accounts import Account
from core.records.lineage import lineage
from core.records.tables import Adapter, Checkpoint

router = APIRouter(prefix="/v1/adapters", route_class=Guarded)

AliasName = Annotated[str, Path(max_length=64)]


@router.get("/{adapter:path}/versions", response_model=None)
def versions(
    adapter: Id,
    account: AccountDep,
    resources: ResourcesDep,
    after: Annotated[int | None, Query(ge=1, lt=10**18)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> shapes.Shape:
    """All adapters of one suffix, newest first. adapter: any of them, or the suffix itself. after: a version."""
    with resources.database.session() as session, errors.unknown_cursor():
        family = _family(session, account, adapter)
        page = aliases.versions(session, account, family, after=after, limit=limit)
        if not page.rows and after is None:
            raise errors.adapter_not_found(adapter)
        return shapes_of(session, account, page)


@router.post("/{adapter:path}/aliases/{alias}", response_model=None)
def move(adapter: Id, alias: AliasName, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """SUFFIX@alias means this adapter from now on, or a checkpoint of its job where that is named.

    What it meant before is still there under its version, or under the checkpoint's name.
    """
    with resources.database.writing() as session:
        found, step = _meant(session, account, adapter)
        try:
            aliases.move(session, account, found, alias, step=step)
        except aliases.UnfitAlias as error:
            raise errors.bad_request(str(error), param="alias", code="invalid_value") from None
        return shape_of(session, account, found)


@router.delete("/{adapter:path}/aliases/{alias}", response_model=None)
def remove(adapter: Id, alias: AliasName, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """SUFFIX@alias means nothing any more. adapter: any of the suffix, or the suffix itself."""
    with resources.database.writing() as session:
        family = _family(session, account, adapter)
        if not aliases.remove(session, account, family, alias):
            message = "There is no such alias of this adapter."
            raise errors.not_found(message, param="alias", code="alias_not_found")
    return shapes.deleted(f"{family}@{alias}", "adapter.alias")


@router.get("/{adapter:path}/lineage", response_model=None)
def trace(adapter: Id, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Everything that it was made from, back to the first dataset, and what went on from it."""
    with resources.database.session() as session:
        found = lineage(session, account, _found(session, account, adapter))
    return {
        "object": "adapter.lineage",
        "nodes": [dataclasses.asdict(node) for node in found.nodes.values()],
        "edges": [dataclasses.asdict(edge) for edge in found.edges],
        "is_cut": found.is_cut,
    }


def _meant(session: Session, account: Account, name: str) -> tuple[Adapter, Checkpoint | None]:
    """An adapter; or a checkpoint, with the adapter that its job made."""
    if step := adapters.made_by_step(session, account, name):
        return step
    if adapters.resolve(session, account, name, base_models=()) and not adapters.find(session, account, name):
        message = (
            "The checkpoint's job has made no adapter yet, and an alias names a version of one: wait until the job has "
            "succeeded, or make a job that goes on from the checkpoint (continue_from)."
        )
        raise errors.bad_request(message, param="id", code="checkpoint_of_no_version")
    return _found(session, account, name), None


def _found(session: Session, account: Account, name: str) -> Adapter:
    found = adapters.find(session, account, name)
    if found is None:
        raise errors.adapter_not_found(name)
    return found


def _family(session: Session, account: Account, name: str) -> str:
    """The family that a name is in, or that it is."""
    found = adapters.find(session, account, name)
    if found is None:
        return name
    if found.family is None:
        message = "The adapter has no suffix, so it is a version of nothing."
        raise errors.not_found(message, param="id", code="adapter_has_no_versions")
    return found.family
