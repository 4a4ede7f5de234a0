"""/v1/adapters: what a fine-tuning made, as the PEFT zip that other tools read; and what other tools made, imported."""

import re
from collections.abc import Mapping
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from api import errors, shapes
from api.adapter_answers import shape_of, shapes_of
from api.adapter_import import imported
from api.deps import AccountDep, After, Id, ResourcesDep
from api.guard import Guarded
from api.resources import Resources
from core.records import adapters
from core.records.accounts import Account
from core.records.adapters import Model
from core.records.tables import Adapter

router = APIRouter(prefix="/v1/adapters", route_class=Guarded)

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@router.get("", response_model=None)
def list_adapters(
    account: AccountDep,
    resources: ResourcesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> shapes.Shape:
    """The project's adapters, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = adapters.listed(session, account, after=after, limit=limit)
        return shapes_of(session, account, page)


@router.post("/import", response_model=None)
async def import_adapter(request: Request, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Keeps an adapter that others made, once an engine of its base model has found nothing wrong with it."""
    adapter = await imported(request, account, resources)
    return await run_sync(_shape, resources, account, adapter)


@router.get("/{adapter:path}/download", response_model=None)
def download(adapter: Id, request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """The PEFT zip of an adapter, or of a checkpoint that can be used as a model, by id or by name."""
    model = _wearable(resources, account, adapter)
    assert model.sha256 is not None
    assert model.size_bytes is not None
    etag = f'"{model.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f'attachment; filename="{_file_name(model.name)}.zip"',
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    start, end = _range(request.headers, etag, model.size_bytes)
    is_part = end - start < model.size_bytes
    if is_part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{model.size_bytes}"
    headers["content-length"] = str(end - start)
    pieces = resources.blobs.read(model.sha256, start, end)
    return StreamingResponse(pieces, 206 if is_part else 200, headers, media_type="application/zip")


@router.get("/{adapter:path}", response_model=None)
def retrieve(adapter: Id, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """One adapter, by id or by name."""
    with resources.database.session() as session:
        found = adapters.find(session, account, adapter)
        if found is None:
            raise errors.adapter_not_found(adapter)
        return shape_of(session, account, found)


@router.delete("/{adapter:path}", response_model=None)
def delete(adapter: Id, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Nobody can call it from now on, and its job's checkpoints go with it. 409 while an alias means it."""
    with resources.database.writing() as session, errors.aliased():
        found = adapters.find(session, account, adapter)
        if found is None:
            raise errors.adapter_not_found(adapter)
        adapters.delete(session, account, found.name)
    return shapes.deleted(found.id, "adapter")


def _shape(resources: Resources, account: Account, adapter: Adapter) -> shapes.Shape:
    with resources.database.session() as session:
        return shape_of(session, account, adapter)


def _wearable(resources: Resources, account: Account, name: str) -> Model:
    with resources.database.session() as session:
        model = adapters.resolve(session, account, name, base_models=())
    if model is None or model.sha256 is None:
        raise errors.adapter_not_found(name)
    return model


def _range(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int]:
    """The bytes asked for, from start up to but without end. One range only: several are answered with the whole."""
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or headers.get("if-range", etag) != etag or asked.group() == "bytes=-":
        return 0, size
    first, last = asked.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise errors.ClientError(
            416, "The range lies outside the file.", code="invalid_range", headers={"content-range": f"bytes */{size}"}
        )
    return start, end


def _file_name(model: str) -> str:
    """A model's name as a file's: no separators."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)
