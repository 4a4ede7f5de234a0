"""What is wrong is found, each fault by breaking the thing on purpose; what is right is left in peace."""

import pytest
from sqlalchemy import text, update

from core.blob import Blob, place
from core.blobs import FolderStore
from core.records import datasets, jobs, leases
from core.records.events import Event
from core.records.soundness import Fault, faults
from core.records.tables import Adapter, File, Job


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


@pytest.fixture
def add(db, store, account):
    def file(content):
        with db.writing() as session:
            blob = store.put_bytes(content)
            return datasets.add(session, account, filename="t", purpose="fine-tune", blob=blob)

    return file


@pytest.fixture
def run(db, store, account, machine, spec):
    """A job's id, claimed, and its claim."""

    def job():
        with db.writing() as session:
            made = jobs.create(session, account, spec=spec, request={}, training_file_id=add_id(session))
        return made.id, machine.claim(made.id)

    def add_id(session):
        blob = store.put_bytes(b"rows")
        return datasets.add(session, account, filename="t", purpose="fine-tune", blob=blob).id

    return job


def succeeded(db, store, held):
    said = {"peft_type": "LORA", "details": {}, "step": 9, "trained_tokens": 90}
    return jobs.succeed(db, held, adapter=store.put_bytes(b"adapter"), **said)


def found(db, store):
    return [(fault.kind, fault.of, fault.found) for fault in faults(db, store)]


def test_an_installation_at_work_has_no_fault(db, store, machine, run):
    _, held = run()
    jobs.record_checkpoint(db, held, step=3, metrics={}, state=store.put_bytes(b"s"), adapter=store.put_bytes(b"a"))
    succeeded(db, store, held)
    _, requeued = run()
    machine.requeue(requeued)
    job_id, _ = run()
    machine.expire(job_id)
    machine.claim(job_id)
    with pytest.raises(leases.Fenced):
        leases.record(db, leases.Claim(job_id, 1, "worker"), [Event("step", "too late")])
    machine.cancel(run()[0])
    assert found(db, store) == []


def test_a_blob_that_is_missing_altered_or_of_another_size_is_told_with_its_row(db, store, add):
    missing, altered, resized = add(b"missing"), add(b"altered"), add(b"resized")
    store.delete(missing.blob_sha256)
    (store.root / place(altered.blob_sha256)).write_bytes(b"ALTERED")
    with db.writing() as session:
        session.execute(update(File).where(File.id == resized.id).values(size_bytes=1))
    told = {fault.kind: fault for fault in faults(db, store)}
    assert {kind: fault.of for kind, fault in told.items()} == {
        "missing": f"file {missing.id}",
        "digest": f"file {altered.id}",
        "size": f"file {resized.id}",
    }
    assert told["size"].found == f"the row says 1 bytes, blob {resized.blob_sha256} holds 7"


def test_a_deleted_row_s_bytes_may_be_gone(db, store, account, add):
    file = add(b"deleted")
    with db.writing() as session:
        datasets.delete(session, account, file.id)
    store.delete(file.blob_sha256)
    assert found(db, store) == []


def test_a_row_that_lets_go_while_it_is_looked_at_is_no_fault(db, store, add):
    """A trainer drops a state that the check has just read the name of."""
    file, read = add(b"let go"), store.read

    def reading(sha256):
        with db.writing() as session:
            session.execute(update(File).where(File.id == file.id).values(deleted_at=1.0))
        store.delete(sha256)
        return read(sha256)

    store.read = reading
    assert found(db, store) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"state": "asleep", "lease_owner": None, "lease_until": None}, "its state is none of"),
        ({"lease_owner": None}, "it is running, and nobody holds it"),
        ({"state": "queued"}, "it is not running, and is held all the same"),
        ({"finished_at": 1.0}, "it has not ended, and says when it did"),
        ({"step": 9, "total_steps": 8}, "its step lies beyond its last"),
        ({"lease_epoch": 0}, "it is running, and nobody holds it"),
    ],
)
def test_a_job_in_a_state_that_cannot_be_is_told(db, store, run, values, said):
    job_id, _ = run()
    with db.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))
    told = [fault for fault in faults(db, store) if fault.found.startswith(said)]
    assert [(fault.kind, fault.of) for fault in told] == [("job", job_id)]


ENDED = {"lease_owner": None, "lease_until": None, "finished_at": 1.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"state": "succeeded", **ENDED}, "it has succeeded, and has no adapter"),
        ({"state": "failed", **ENDED}, "it has failed, and does not say why"),
        ({"state": "cancelled", **ENDED, "finished_at": None}, "it has ended, and does not say when"),
    ],
)
def test_an_end_that_cannot_be_is_told(db, store, run, values, said):
    job_id, _ = run()
    with db.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))
    assert Fault("job", job_id, said) in list(faults(db, store))


def test_an_adapter_that_its_job_cannot_have_made_is_told(db, store, account, make_account, run):
    other, (job_id, _) = make_account("other"), run()
    with db.writing() as session:
        session.add(stray(store, other, job_id))
    assert found(db, store) == [
        ("job", job_id, "it has not succeeded, and has an adapter"),
        ("adapter", "adapter-stray", "its job is another project's"),
    ]
    assert account.project_id != other.project_id


def stray(store, account, job_id):
    blob = store.put_bytes(b"stray")
    return Adapter(
        id="adapter-stray",
        organization_id=account.organization_id,
        project_id=account.project_id,
        name="ft:tiny:other::stray",
        job_id=job_id,
        base_model="tiny",
        peft_type="LORA",
        blob_sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        details={},
        created_at=1.0,
    )


def test_a_superseded_attempt_that_had_a_word_after_the_next_claim_is_told(db, store, machine, run):
    job_id, _ = run()
    machine.expire(job_id)
    machine.claim(job_id)
    assert found(db, store) == []
    with db.writing() as session:
        jobs_events(session, job_id, lease_epoch=1)
        jobs_events(session, job_id, lease_epoch=9)
    assert {said for _, _, said in found(db, store)} == {
        "a superseded attempt wrote after the one that took over",
        "an event is of an attempt that has not been",
    }


def jobs_events(session, job_id, lease_epoch):
    session.execute(
        text(
            "INSERT INTO job_events (job_id, lease_epoch, level, type, kind, message, created_at) "
            "VALUES (:job_id, :lease_epoch, 'info', 'message', 'step', '', 1.0)"
        ),
        {"job_id": job_id, "lease_epoch": lease_epoch},
    )


def test_a_start_that_an_unended_job_is_to_read_is_looked_for(db, store, account, spec, add):
    file = add(b"rows")
    lost = Blob("e" * 64, 1)
    with db.writing() as session:
        changed = spec.model_copy(update={"init_adapter_sha256": lost.sha256})
        made = jobs.create(session, account, spec=changed, request={}, training_file_id=file.id)
    assert found(db, store) == [("missing", f"start {made.id}", f"blob {lost.sha256} is not in the store")]
