"""Which of some jobs trained in step: taken by one trainer for one base model, at times that overlap."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.records.tables import Job, JobEvent

FOREVER = float("inf")
# What ends an attempt of a job that goes on; a claim ends the one before it, whose trainer was lost.
LEAVING = ("claimed", "paused", "requeued", "drained")


def companies(session: Session, jobs: Sequence[Job]) -> list[list[Job]]:
    """Each job once, beside those that it was in step with at some time, in the order of the first of each.

    Read from the claims: of jobs that were claimed before claims named their trainer, nothing is known.
    """
    stays = {job.id: _stays(session, job) for job in jobs}
    found = list[list[Job]]()
    for job in jobs:
        beside = [group for group in found if any(_met(job, other, stays) for other in group)]
        joined = [other for group in beside for other in group] + [job]
        where = found.index(beside[0]) if beside else len(found)
        found = [group for group in found if group not in beside]
        found.insert(where, joined)
    return found


def _stays(session: Session, job: Job) -> list[tuple[str, float, float]]:
    """Of each attempt: the trainer, when it took the job, and when the job left it."""
    moves = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type == "message").order_by(JobEvent.id)
    stays = list[tuple[str, float, float]]()
    for event in session.scalars(moves):
        if stays and event.kind in LEAVING and stays[-1][2] == FOREVER:
            stays[-1] = (*stays[-1][:2], event.created_at)
        if event.kind == "claimed":
            stays.append(((event.event_data or {}).get("trainer", ""), event.created_at, FOREVER))
    if stays and stays[-1][2] == FOREVER and job.finished_at is not None:
        stays[-1] = (*stays[-1][:2], job.finished_at)
    return [stay for stay in stays if stay[0]]


def _model_of(job: Job) -> tuple[object, ...]:
    """What of a model in memory, beside its base, is one for all its jobs."""
    keeps = (bool(job.spec.get(name)) for name in ("activation_checkpointing", "activation_offload"))
    return (job.spec.get("method", {}).get("base_precision"), *keeps)


def _met(one: Job, other: Job, stays: dict[str, list[tuple[str, float, float]]]) -> bool:
    if one.base_model != other.base_model or _model_of(one) != _model_of(other):
        return False
    return any(
        mine == its and began_at < its_end and its_beginning < ended_at
        for mine, began_at, ended_at in stays[one.id]
        for its, its_beginning, its_end in stays[other.id]
    )
