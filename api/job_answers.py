"""Jobs as their owner sees them, with their place in the queue; and the bell that is rung once one waits."""

from sqlalchemy.orm import Session

from api import shapes
from api.resources import Resources
from core.records import jobs, names, queue
from core.records.pages import Page
from core.records.scope import Account
from core.records.tables import Job


def shape_of(session: Session, account: Account, job: Job) -> shapes.Shape:
    """One job."""
    return _shape(account, job, queue.places(session, [job.id] if job.state == "queued" else []))


def shapes_of(session: Session, account: Account, page: Page[Job]) -> shapes.Shape:
    """A page of jobs."""
    places = queue.places(session, [job.id for job in page.rows if job.state == "queued"])
    return shapes.listed(page, lambda job: _shape(account, job, places))


def ring(resources: Resources, job_id: str) -> None:
    """Wakes a trainer, and spares the sweeper from doing so. A bell that does not sound is no error."""
    if resources.queue.ring(job_id):
        with resources.database.writing() as session:
            jobs.mark_rung(session, job_id)


def _shape(account: Account, job: Job, places: dict[str, queue.Place]) -> shapes.Shape:
    name = names.model_name(job.base_model, account.organization_slug, job.suffix, job.id)
    return shapes.job(job, name if job.state == "succeeded" else None, places.get(job.id))
