"""POST /v1/fine_tuning/estimate: what a job would take, before it is made."""

from anyio.to_thread import run_sync
from fastapi import APIRouter

from api import errors, shapes
from api.deps import AccountDep, ResourcesDep
from api.estimating import estimated
from api.guard import Guarded
from api.job_plan import plan
from api.job_request import JobRequest

router = APIRouter(prefix="/v1/fine_tuning", route_class=Guarded)


@router.post("/estimate", response_model=None)
async def estimate(body: JobRequest, account: AccountDep, resources: ResourcesDep) -> shapes.Shape:
    """A job's body, answered with its tokens, steps, time and memory, and every "auto" resolved. Nothing is made."""
    planned = await run_sync(plan, resources, account, body)
    found = await estimated(resources, planned)
    if found is None:
        raise errors.overloaded("No engine of this base model can count the files' tokens now: try again.")
    about = {"object": "fine_tuning.estimate", "model": planned.spec.base_model}
    return about | found.model_dump(mode="json") | shapes.resolved(planned.settled(found).spec)
