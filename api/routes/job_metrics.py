"""GET /v1/fine_tuning/jobs/{job_id}/metrics: how a run went, as series to be plotted."""

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api import errors, shapes
from api.deps import AccountDep, OwnedJob, ResourcesDep
from api.guard import Guarded
from core.records.series import metrics

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Guarded)


class Wanted(BaseModel):
    """Which steps, both ends included, and how many points of each metric at most."""

    model_config = ConfigDict(extra="forbid")

    from_step: int = Field(1, ge=1, le=10**12)
    to_step: int | None = Field(None, ge=1, le=10**12)
    resolution: int = Field(500, ge=1, le=5000)


@router.get("/{job_id}/metrics", response_model=None)
def series(
    job: OwnedJob, account: AccountDep, resources: ResourcesDep, wanted: Annotated[Wanted, Query()]
) -> shapes.Shape:
    """Every metric that the job told, the later telling of a step alone, thinned to so many points at most."""
    if wanted.to_step is not None and wanted.to_step < wanted.from_step:
        message = f"to_step: must be at least from_step, which is {wanted.from_step}; it is {wanted.to_step}"
        raise errors.bad_request(message, param="to_step", code="invalid_value")
    with resources.database.session() as session:
        found = metrics(session, account, job.id, **wanted.model_dump())
    return {
        "object": "fine_tuning.job.metrics",
        "fine_tuning_job_id": job.id,
        "first_step": found.first_step,
        "last_step": found.last_step,
        "total_steps": job.total_steps,
        "steps_per_point": found.width,
        "last_event_id": shapes.event_id(found.last_event) if found.last_event else None,
        "series": {name: dataclasses.asdict(one) for name, one in found.series.items()},
        "ranks": dataclasses.asdict(found.ranks),
    }
