"""/admin/jobs: the list, the form for a new one, and one job in the making. What they change goes through /v1."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.responses import Response

from api import errors, shapes
from api.admin.compare import MOST
from api.admin.door import Page
from api.admin.lineage_drawing import drawn
from api.admin.render import render
from api.admin.schema_form import Field, fields_of
from api.admin.values import in_force
from api.deps import AccountDep, After, OwnedJob, ResourcesDep
from core.records import aliases, datasets, jobs
from core.records.adapters import of_adapter
from core.records.lineage import lineage_of_job
from core.records.scope import of
from core.records.tables import TERMINAL_STATES, Adapter, File, Job
from core.specs.method import SPECS
from core.specs.training import HyperparametersRequest, TrainingRequest

router = APIRouter(prefix="/admin/jobs", route_class=Page, include_in_schema=False)

MOST_FILES = 200
CHECKPOINTS = 20
# When each method suits, for one who has to choose: docs/methods says more.
SUITS = {
    "lora": "The first choice: strong, quick, and small. It changes how the model's layers work.",
    "qlora": "LoRA on a base in 4 bits: for a base model that would not fit otherwise.",
    "adalora": "Spreads its ranks over the layers by itself: when an adapter must be small and every bit count.",
    "prefix_tuning": "Learned keys and values before every row: for generation, with the weights untouched.",
    "prompt_tuning": "A handful of learned tokens in front: the smallest adapter, best with large base models.",
    "p_tuning": "Learned tokens anywhere in a template: for classification and questions of one form.",
}


@router.get("", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The project's jobs, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = jobs.listed(session, account, after=after)
    return render(request, "jobs.html", page=page, after=after, company=_in_step(page.rows), most=MOST)


@router.get("/new", response_model=None)
def new(
    request: Request,
    account: AccountDep,
    resources: ResourcesDep,
    file: Annotated[str, Query(max_length=255)] = "",
    continue_from: Annotated[str, Query(max_length=255)] = "",
) -> Response:
    """The form for a job, made from the schemas of what /v1/fine_tuning/jobs takes."""
    with resources.database.session() as session:
        files = datasets.listed(session, account, purpose="fine-tune", limit=MOST_FILES).rows
    return render(
        request,
        "new_job.html",
        files=[one for one in files if one.status == "processed"],
        chosen_file=file,
        continue_from=continue_from,
        base_models=list(resources.settings.base_models),
        methods=_methods(),
        suits=SUITS,
        hyperparameters=fields_of(HyperparametersRequest),
        training=fields_of(TrainingRequest, without={"early_stopping"}),
    )


@router.get("/{job_id}", response_model=None)
def one(request: Request, job: OwnedJob, account: AccountDep, resources: ResourcesDep) -> Response:
    """One job. Its events come to the page by /v1."""
    with resources.database.session() as session:
        checkpoints = jobs.checkpoints(session, account, job.id, limit=CHECKPOINTS).rows
        adapter = session.scalars(
            select(Adapter).where(*of(Adapter, account), Adapter.job_id == job.id, Adapter.deleted_at.is_(None))
        ).one_or_none()
        of_files = {job.training_file_id, job.validation_file_id} - {None}
        files = session.scalars(select(File).where(*of(File, account), File.id.in_(of_files))).all()
        drawing = drawn(lineage_of_job(session, account, job))
        pointing = aliases.pointing_to(session, account, [adapter.id] if adapter else [])
        named = aliases.of_family(session, account, adapter.family) if adapter and adapter.family else {}
    return render(
        request,
        "job.html",
        job=job,
        shape=shapes.job(job, adapter.name if adapter else None),
        moves=moves_of(job),
        is_over=job.state in TERMINAL_STATES,
        checkpoints=checkpoints,
        model=of_adapter(adapter) if adapter else None,
        adapter=adapter,
        aliases=pointing.get(adapter.id, []) if adapter else [],
        named=named,
        files={file.id: file for file in files},
        drawing=drawing,
        values=in_force(job),
    )


def moves_of(job: Job) -> frozenset[str]:
    """What the records let its owner do with a job as it is now: pausing.py, jobs.py and /v1 say why."""
    if job.state in TERMINAL_STATES:
        return frozenset({"retry"})
    is_wished = job.pause_requested_at is not None
    found = {"resume"} if job.state == "paused" or is_wished else {"pause"}
    if job.cancel_requested_at is not None:
        return frozenset(found - {"pause"})
    return frozenset({*found, "cancel"})


def _in_step(rows: Sequence[Job]) -> dict[str, list[str]]:
    """Of each running job that is not alone with its trainer, all that this trainer trains, itself among them."""
    held = dict[str | None, list[str]]()
    for row in rows:
        if row.state == "running":
            held.setdefault(row.lease_owner, []).append(row.id)
    return {job_id: ids[:MOST] for ids in held.values() if len(ids) > 1 for job_id in ids}


def _methods() -> list[tuple[str, list[Field]]]:
    return [(spec.model_fields["type"].default, fields_of(spec, without={"type"})) for spec in SPECS]
