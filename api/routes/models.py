"""/v1/models: the base models and the project's adapters, by the names they are called by."""

from fastapi import APIRouter

from api import errors, shapes
from api.deps import AccountDep, OwnedModel, ResourcesDep
from api.guard import Guarded
from core.records import adapters

router = APIRouter(prefix="/v1/models", route_class=Guarded)


@router.get("", response_model=None)
def list_models(account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """All of them: this list has no pages."""
    with resources.database.session() as session:
        own = adapters.models(session, account)
    bases = [adapters.of_base(name) for name in resources.settings.base_names]
    return shapes.plain_list(shapes.model(model, account) for model in [*bases, *own])


@router.get("/{model:path}", response_model=None)
def retrieve(model: OwnedModel, account: AccountDep) -> shapes.Shape:
    """One model. Names may hold slashes, sent as they are or as %2F."""
    return shapes.model(model, account)


@router.delete("/{model:path}", response_model=None)
def delete(model: OwnedModel, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Nobody can call it from now on. A base model stays."""
    if model.adapter_id is None:
        raise errors.forbidden("A base model cannot be deleted.", param="model")
    with resources.database.writing() as session, errors.aliased():
        if not adapters.delete(session, account, model.name):
            raise errors.model_not_found(model.name)
    return shapes.deleted(model.name, "model")
