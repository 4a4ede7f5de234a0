"""What finished runs were measured to be: the metrics of the step that is served."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.records.tables import Job, JobEvent

_NOT_MEASURED = ("total_steps", "learning_rate", "grad_norm", "tokens_per_s", "gpu_mem_bytes", "ranks", "best_step")


def evaluations(session: Session, job_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """By job: step, and train_ and valid_ metrics as they were told of it. Scoped by who asks: ids are his own."""
    served = JobEvent.step == Job.outcome["served_step"].as_integer()
    told = select(JobEvent.job_id, JobEvent.event_data).join(Job, Job.id == JobEvent.job_id)
    told = told.where(JobEvent.job_id.in_(job_ids), JobEvent.type == "metrics", served).order_by(JobEvent.id)
    found = dict[str, dict[str, Any]]()
    for job_id, said in session.execute(told):
        known = {name: value for name, value in (said or {}).items() if value is not None}
        found.setdefault(job_id, {}).update({name: known[name] for name in known if name not in _NOT_MEASURED})
    return found
