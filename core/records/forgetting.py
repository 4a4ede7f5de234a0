"""Events and metrics of jobs that ended long ago are removed; what the step that is served was measured to be stays."""

from collections.abc import Iterator

from sqlalchemy import and_, delete, or_, select

from core.records.database import Database, now_s
from core.records.tables import TERMINAL_STATES, Job, JobEvent

MANY = 1000  # events that one transaction removes


def forgetting(db: Database, *, kept_s: float) -> Iterator[int]:
    """Remove the events of jobs that ended more than kept_s ago, in small transactions; how many each removed.

    A job's history goes as a whole, by its end and not by each event's age, so that nobody meets half of one. The
    metrics of the step that its adapter is of stay: they are what records/evaluations.py shows beside the adapter.
    """
    is_over = and_(Job.state.in_(TERMINAL_STATES), Job.finished_at < now_s() - kept_s)
    is_served = JobEvent.step.is_not_distinct_from(Job.outcome["served_step"].as_integer())
    may_go = or_(JobEvent.type != "metrics", JobEvent.step.is_(None), ~is_served)
    old = select(JobEvent.id).join(Job, Job.id == JobEvent.job_id).where(is_over, may_go)
    while True:
        # Looked for by a reader, so that a look which finds nothing keeps no writer waiting. What has ended stays so.
        with db.session() as session:
            ids = session.scalars(old.order_by(JobEvent.id).limit(MANY)).all()
        if not ids:
            return
        with db.writing() as session:
            session.execute(delete(JobEvent).where(JobEvent.id.in_(ids)))
        yield len(ids)
