"""/v1/files: datasets come in here, and are read through before they are kept."""

import secrets
from pathlib import Path
from typing import Annotated, Literal

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from api import errors, shapes
from api.dataset_check import validated
from api.deps import AccountDep, After, OwnedFile, ResourcesDep
from api.guard import Guarded
from api.multipart import Form, read_form
from api.resources import Resources
from core.records import datasets
from core.records.accounts import Account
from core.records.tables import File

router = APIRouter(prefix="/v1/files", route_class=Guarded)

PURPOSES = ("fine-tune", "assistants", "batch", "evals", "user_data", "vision")
FORM_BYTES = 64 << 10  # what a form may weigh beside its file
EXPIRES_AFTER_S = (3600, 2_592_000)
_READERS = CapacityLimiter(2)  # uploads read through at a time: they keep a processor busy


@router.post("", response_model=None)
async def create(request: Request, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Keeps a file. A dataset with faults is refused as a whole, with each fault's line."""
    path = resources.upload_dir / secrets.token_hex(16)
    await run_sync(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    try:
        with await run_sync(path.open, "xb") as target:
            form = await read_form(request, target, max_bytes=resources.settings.max_upload_bytes + FORM_BYTES)
        return await run_sync(_keep, resources, account, form, path, limiter=_READERS)
    finally:
        await run_sync(lambda: path.unlink(missing_ok=True))


@router.get("", response_model=None)
def list_files(  # noqa: PLR0917  # the framework calls it by names
    account: AccountDep,
    resources: ResourcesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> shapes.Shape:
    """The project's files, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = datasets.listed(session, account, purpose=purpose, after=after, limit=limit, is_ascending=order == "asc")
    return shapes.listed(page, shapes.file)


@router.get("/{file_id}", response_model=None)
def retrieve(file: OwnedFile) -> shapes.Shape:
    """One file."""
    return shapes.file(file)


@router.get("/{file_id}/content", response_model=None)
def content(file: OwnedFile, resources: ResourcesDep) -> StreamingResponse:
    """Its bytes."""
    return StreamingResponse(
        resources.blobs.read(file.blob_sha256),
        media_type="application/octet-stream",
        headers={"content-length": str(file.size_bytes), "content-disposition": "attachment"},
    )


@router.delete("/{file_id}", response_model=None)
def delete(file: OwnedFile, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Nobody finds it from now on; jobs that were made with it still do."""
    with resources.database.writing() as session:
        if not datasets.delete(session, account, file.id):
            raise errors.file_not_found(file.id)
    return shapes.deleted(file.id, "file")


def _keep(resources: Resources, account: Account, form: Form, path: Path) -> shapes.Shape:
    """Checks an upload and keeps it. Raises ClientError 400. Blocking."""
    purpose, expires_after_s = _purpose(form), _expires_after_s(form)
    if form.size_bytes > resources.settings.max_upload_bytes:
        raise errors.too_large(resources.settings.max_upload_bytes)
    validation = validated(path, resources.settings.max_unpacked_bytes) if purpose == "fine-tune" else None
    blob = resources.blobs.put(path)
    with resources.database.writing() as session:
        file: File = datasets.add(
            session,
            account,
            filename=form.filename,
            purpose=purpose,
            blob=blob,
            validation=validation,
            expires_after_s=expires_after_s,
        )
    return shapes.file(file)


def _purpose(form: Form) -> str:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise errors.bad_request("purpose: this field is required", param="purpose", code="missing_required_parameter")
    if purpose not in PURPOSES:
        raise errors.bad_request(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose", code="invalid_value")
    return purpose


def _expires_after_s(form: Form) -> float | None:
    anchor, seconds = form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    shortest, longest = EXPIRES_AFTER_S
    is_whole = seconds is not None and seconds.isascii() and seconds.isdigit() and len(seconds) < 10  # noqa: PLR2004
    if anchor != "created_at" or not is_whole or not shortest <= int(seconds or 0) <= longest:
        raise errors.bad_request(
            f"expires_after needs the anchor created_at and {shortest} to {longest} seconds",
            param="expires_after",
            code="invalid_value",
        )
    return float(seconds or 0)
