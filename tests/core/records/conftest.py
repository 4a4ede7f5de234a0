"""The real databases, and rows to begin with."""

import pytest
from databases import database_url, db, postgres_server, postgres_tables, postgres_url, sqlite_template
from sqlalchemy import update

from core.blobs import Blob
from core.records import accounts, datasets, jobs
from core.records.tables import Job
from core.specs.method import LoraSpec
from core.specs.training import HyperparametersRequest, TrainingRequest, resolve

__all__ = ["database_url", "db", "postgres_server", "postgres_tables", "postgres_url", "sqlite_template"]

LEASE_S = 60.0


def blob(letter="a", size_bytes=7):
    """A blob that is nowhere: rows never look into the store."""
    return Blob(letter * 64, size_bytes)


@pytest.fixture
def make_account(db):
    """Accounts of organisations of their own, by slug."""

    def make(slug="acme"):
        account, _ = accounts.create_project(db, slug=slug, name=slug.title(), environment="local")
        return account

    return make


@pytest.fixture
def account(make_account):
    return make_account()


@pytest.fixture(scope="session")
def spec():
    """Any training run."""
    return resolve(
        base_model="tiny",
        context=128,
        method=LoraSpec(),
        hyperparameters=HyperparametersRequest(),
        training=TrainingRequest(),
        seed=7,
        n_examples=10,
    )


@pytest.fixture
def make_job(db, account, spec):
    """Queued jobs, each with a training file; the id of each."""

    def make(owner=account, **wanted):
        with db.writing() as session:
            file = datasets.add(session, owner, filename="train.jsonl", purpose="fine-tune", blob=blob())
            return jobs.create(session, owner, spec=spec, request={}, training_file_id=file.id, **wanted).id

    return make


class Machine:
    """The job machine of one database, in words of tests."""

    def __init__(self, db, account):
        self.db, self.account = db, account

    def job(self, job_id):
        with self.db.session() as session:
            return session.get_one(Job, job_id)

    def claim(self, job_id=None, owner="worker"):
        return jobs.claim(self.db, owner=owner, lease_s=LEASE_S, job_id=job_id)

    def beat(self, held, **said):
        return jobs.beat(self.db, held, lease_s=LEASE_S, **said)

    def succeed(self, held, letter="b", **more):
        said = {"peft_type": "LORA", "details": {"parameters": 1}, "step": 9, "trained_tokens": 90}
        return jobs.succeed(self.db, held, adapter=blob(letter), **said, **more)

    def requeue(self, held, **more):
        return jobs.requeue(self.db, held, code="crash", message="The trainer crashed.", retry_base_s=0, **more)

    def cancel(self, job_id):
        with self.db.writing() as session:
            return jobs.cancel(session, self.account, job_id)

    def pause(self, job_id):
        with self.db.writing() as session:
            return jobs.pause(session, self.account, job_id)

    def resume(self, job_id):
        with self.db.writing() as session:
            return jobs.resume(session, self.account, job_id)

    def sweep(self, owner="sweeper", **more):
        return jobs.sweep(self.db, owner=owner, **more)

    def kinds(self, job_id):
        """What happened, oldest first."""
        with self.db.session() as session:
            return [event.kind for event in reversed(jobs.events(session, self.account, job_id, limit=100).rows)]

    def expire(self, job_id):
        """As if the lease had run out: its worker is dead, or thought to be."""
        self.set(job_id, lease_until=0.0)

    def set(self, job_id, **values):
        with self.db.writing() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))


@pytest.fixture
def machine(db, account):
    return Machine(db, account)
