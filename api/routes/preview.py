"""POST /v1/fine_tuning/preview: a dataset's first rows as a base model would see them, which an engine knows."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import Field, JsonValue, model_validator

from api import job_plan, shapes
from api.deps import AccountDep, ResourcesDep
from api.guard import Guarded
from api.job_request import Reference
from api.resources import Resources
from core.records.accounts import Account
from core.specs.method import LoraSpec, MethodSpec
from core.specs.preview import MAX_ROWS, PreviewSpec
from core.specs.spec import Spec
from core.specs.training import HyperparametersRequest, TrainingRequest, resolve

router = APIRouter(prefix="/v1/fine_tuning", route_class=Guarded)


class PreviewRequest(Spec):
    """A job's model, method and data, as a job's request has them; the data may stand here itself."""

    model: Reference
    training_file: Reference | None = None
    rows: Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=100)] | None = None
    peft: MethodSpec = Field(default_factory=LoraSpec)
    training: TrainingRequest = Field(default_factory=TrainingRequest)
    limit: int = Field(3, ge=1, le=MAX_ROWS)

    @model_validator(mode="after")
    def _has_one_source(self) -> "PreviewRequest":
        if (self.training_file is None) == (self.rows is None):
            raise ValueError("give one of training_file and rows")
        return self


@router.post("/preview", response_model=None)
async def preview(body: PreviewRequest, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """The rows token by token, which of them are learned, and what is wrong or odd."""
    asked = await run_sync(_spec, resources, account, body)
    found = await resources.engines.preview(asked)
    about = {"object": "fine_tuning.preview", "model": body.model, "valid": found.n_errors == 0}
    template = body.peft.row_template
    virtual = {"virtual_tokens": template.num_virtual_tokens if template else 0, "prefix": body.peft.prefix_length}
    return about | virtual | found.model_dump(mode="json")


def _spec(resources: Resources, account: Account, body: PreviewRequest) -> PreviewSpec:
    """What a job of these fields would do to its rows. Raises ClientError 400. Blocking."""
    job_plan.must_be_a_base(resources, body.model)
    file = body.training_file and job_plan.dataset(resources, account, body.training_file, "training_file")
    resolved = resolve(
        base_model=body.model,
        context=job_plan.context_of(resources, body.model),
        method=body.peft,
        hyperparameters=HyperparametersRequest(),
        training=body.training,
        seed=0,
        n_examples=1,
    )
    job_plan.must_have_room(resolved)
    return PreviewSpec(
        base_model=body.model,
        file_sha256=file.blob_sha256 if file else None,
        rows=body.rows,
        template=body.peft.row_template,
        prefix_length=body.peft.prefix_length,
        train_on=resolved.train_on,
        max_tokens=resolved.max_seq_length,
        limit=body.limit,
    )
