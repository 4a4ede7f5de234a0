"""What is one organisation's does not exist for another: every question and every act, asked with foreign ids."""

import dataclasses

import pytest

from core.blobs import Blob
from core.records import accounts, adapters, audit, datasets, idempotency, jobs
from core.records.pages import UnknownCursor
from core.records.tables import AuditEntry, File, Job


@pytest.fixture
def theirs(db, machine, make_job, account):
    """All that an account may own, by name."""
    job_id = make_job()
    held = machine.claim()
    step = jobs.record_checkpoint(db, held, step=5, metrics={}, adapter=Blob("d" * 64, 7))
    adapter = machine.succeed(held)
    running = make_job()
    with db.writing() as session:
        key, _ = accounts.create_key(session, account, name="ci", environment="local")
        entry = audit.listed(session, account, limit=1).rows[0]
        event = jobs.events(session, account, job_id, limit=1).rows[0]
    return {
        "file": machine.job(job_id).training_file_id,
        "job": job_id,
        "queued": running,
        "adapter": adapter,
        "checkpoint": step,
        "key": key.id,
        "entry": entry.id,
        "event": event.id,
    }


def questions(session, account, theirs):
    """What a foreign id answers, by question."""
    bases = {"tiny"}
    return {
        "file": datasets.find(session, account, theirs["file"]),
        "job": jobs.find(session, account, theirs["job"]),
        "adapter by name": adapters.find(session, account, theirs["adapter"].name),
        "adapter by id": adapters.find(session, account, theirs["adapter"].id),
        "model": adapters.resolve(session, account, theirs["adapter"].name, base_models=bases),
        "model by id": adapters.resolve(session, account, theirs["adapter"].id, base_models=bases),
        "step": adapters.resolve(session, account, theirs["checkpoint"].model_name, base_models=bases),
        "events": [*jobs.events(session, account, theirs["job"]).rows],
        "checkpoints": [*jobs.checkpoints(session, account, theirs["job"]).rows],
    }


def test_what_is_there_for_its_owner_is_missing_for_others(db, account, make_account, theirs):
    stranger = make_account("stranger")
    with db.session() as session:
        assert all(questions(session, account, theirs).values())
        assert not any(questions(session, stranger, theirs).values())


def test_lists_hold_nothing_foreign_and_know_no_foreign_cursor(db, make_account, theirs):
    stranger = make_account("stranger")
    cursors = {
        datasets.listed: theirs["file"],
        jobs.listed: theirs["job"],
        adapters.listed: theirs["adapter"].id,
        accounts.listed_keys: theirs["key"],
        audit.listed: theirs["entry"],
    }
    with db.session() as session:
        assert adapters.models(session, stranger) == []
        for listed, cursor in cursors.items():
            assert all(row.organization_id == stranger.organization_id for row in listed(session, stranger).rows)
            with pytest.raises(UnknownCursor):
                listed(session, stranger, after=cursor)
        with pytest.raises(UnknownCursor):
            jobs.events(session, stranger, theirs["job"], after=theirs["event"])
        with pytest.raises(UnknownCursor):
            jobs.checkpoints(session, stranger, theirs["job"], after=theirs["checkpoint"].id)


def test_nobody_changes_what_is_another_s(db, account, make_account, theirs, spec):
    stranger = make_account("stranger")
    with db.writing() as session:
        assert not datasets.delete(session, stranger, theirs["file"])
        assert not adapters.delete(session, stranger, theirs["adapter"].name)
        assert not adapters.delete(session, stranger, theirs["adapter"].id)
        assert not adapters.delete(session, stranger, theirs["checkpoint"].model_name)
        assert not accounts.revoke_key(session, stranger, theirs["key"])
        assert jobs.cancel(session, stranger, theirs["queued"]) is None
        with pytest.raises(LookupError):
            jobs.create(session, stranger, spec=spec, request={}, training_file_id=theirs["file"])
    with db.session() as session:
        assert all(questions(session, account, theirs).values())
        assert session.get_one(Job, theirs["queued"]).state == "queued"
        entries = session.query(AuditEntry).filter_by(organization_id=stranger.organization_id)
        assert [entry.action for entry in entries] == ["key.created"]


def test_another_project_of_the_same_organisation_is_foreign_too(db, account, theirs):
    neighbour = dataclasses.replace(account, project_id="proj-other")
    with db.session() as session:
        assert not any(questions(session, neighbour, theirs).values())


def test_what_a_job_leaves_behind_is_its_owner_s(db, account, theirs):
    with db.session() as session:
        for row in (*session.query(File), *session.query(Job), theirs["adapter"]):
            assert (row.organization_id, row.project_id) == (account.organization_id, account.project_id)


def test_one_idempotency_key_of_two_tenants_is_two_keys(db, account, make_account):
    stranger = make_account("stranger")
    given = {"route": "POST /v1/x", "key": "k", "body": b"{}"}
    with db.writing() as session:
        idempotency.keep(session, account, **given, status=200, answer={"mine": True})
        assert idempotency.replay(session, stranger, **given) is None
