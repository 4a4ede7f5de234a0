"""/v1/evaluation_rows: conversations with the right answer, kept one by one, and the dataset that they are together."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api import errors, shapes
from api.dataset_check import validated
from api.deps import AccountDep, After, Id, ResourcesDep
from api.generation_request import ModelName
from api.guard import Guarded
from core.records import datasets, evaluation_rows
from core.records.tables import EvaluationRow
from core.specs.dataset import ChatExample
from core.specs.spec import Spec

router = APIRouter(prefix="/v1/evaluation_rows", route_class=Guarded)

Limit = Annotated[int, Query(ge=1, le=100)]


class RowRequest(ChatExample):
    """A conversation, its last turn the right answer. model: whose answer that is; none where a person wrote it."""

    model: ModelName | None = None


class FileRequest(Spec):
    """How the file is to be called."""

    filename: str = Field("evaluation.jsonl", min_length=1, max_length=255)


_PLAIN = FileRequest()


@router.get("", response_model=None)
def list_rows(account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 20) -> shapes.Shape:
    """The project's rows, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        return shapes.listed(evaluation_rows.listed(session, account, after=after, limit=limit), _row)


@router.post("", response_model=None)
def create(body: RowRequest, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """Keeps a conversation as one row."""
    with resources.database.writing() as session:
        try:
            return _row(evaluation_rows.add(session, account, body, model=body.model))
        except evaluation_rows.TooLong as error:
            raise errors.bad_request(str(error), param="messages", code="invalid_value") from None
        except evaluation_rows.TooMany as error:
            raise errors.conflict(str(error), code="too_many_rows") from None


@router.get("/content", response_model=None)
def content(account: AccountDep, resources: ResourcesDep) -> Response:
    """All of them as a dataset of the chat format, oldest first."""
    with resources.database.session() as session:
        text = b"".join(evaluation_rows.lines(session, account))
    headers = {"content-disposition": 'attachment; filename="evaluation.jsonl"'}
    return Response(text, media_type="application/x-ndjson", headers=headers)


@router.post("/file", response_model=None)
def make_file(account: AccountDep, resources: ResourcesDep, body: FileRequest = _PLAIN) -> shapes.Shape:
    """All of them as a file of the project, such as a job takes for its validation. The rows stay."""
    with resources.database.session() as session:
        text = b"".join(evaluation_rows.lines(session, account))
    if not text:
        raise errors.conflict("There is no evaluation row yet: keep one first.", code="no_rows")
    path = resources.upload_dir / secrets.token_hex(16)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(text)
        validation = validated(path, resources.settings.max_unpacked_bytes)
        blob = resources.blobs.put(path)
    finally:
        path.unlink(missing_ok=True)
    with resources.database.writing() as session:
        row = datasets.add(
            session, account, filename=body.filename, purpose="fine-tune", blob=blob, validation=validation
        )
        return shapes.file(row)


@router.delete("/{row_id}", response_model=None)
def delete(row_id: Id, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """It is gone, its text too; files that were made with it keep it."""
    with resources.database.writing() as session:
        if not evaluation_rows.delete(session, account, row_id):
            raise errors.not_found("There is no such evaluation row.", param="id", code="evaluation_row_not_found")
    return shapes.deleted(row_id, "evaluation_row")


def _row(row: EvaluationRow) -> shapes.Shape:
    return {
        "id": row.id,
        "object": "evaluation_row",
        "created_at": int(row.created_at),
        "messages": row.messages,
        "model": row.model,
    }
