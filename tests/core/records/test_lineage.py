"""Where an adapter comes from, back to the first dataset, and what went on from it."""

import pytest

from core.blobs import Blob
from core.records import adapters, datasets, jobs
from core.records.evaluations import evaluations
from core.records.lineage import lineage, lineage_of_job


@pytest.fixture
def grow(db, account, machine, spec):
    """grow(letter, source): a job that went on from a source (name, digest), and its adapter."""

    def make(letter, source=(None, None), **job):
        went_on = spec.model_copy(update={"continue_from": source[0], "continue_from_sha256": source[1]})
        with db.writing() as session:
            files = [
                datasets.add(session, account, filename=f"{letter}{n}", purpose="fine-tune", blob=Blob("f" * 64, 1))
                for n in range(2)
            ]
            ids = {"training_file_id": files[0].id, "validation_file_id": files[1].id}
            made = jobs.create(session, account, spec=went_on, request={}, suffix=letter, **ids, **job)
        held = machine.claim(made.id)
        jobs.record_checkpoint(db, held, step=5, metrics={}, adapter=Blob(letter.upper() * 64, 7))
        return machine.job(made.id), machine.succeed(held, letter)

    return make


@pytest.fixture
def trace(db, account):
    def ask(adapter, owner=account):
        with db.session() as session:
            return lineage(session, owner, adapter)

    return ask


def bonds(found):
    """(source's name, bond, target's name) of every edge."""
    names = {node.id: f"{node.kind} {node.name}" for node in found.nodes.values()}
    return {(names[edge.source], edge.bond, names[edge.target]) for edge in found.edges}


def test_a_graph_leads_from_datasets_through_jobs_to_adapters_and_on(grow, trace):
    first, a = grow("a")
    second, b = grow("b", (a.name, a.blob_sha256))
    third, c = grow("c", (f"{b.name}:ckpt-step-5", "B" * 64), retry_of=second.id)
    made_a = {
        ("file a0", "trained_on", "job a"),
        ("file a1", "validated_on", "job a"),
        ("job a", "made", f"adapter {a.name}"),
    }
    made_b = {
        ("file b0", "trained_on", "job b"),
        ("file b1", "validated_on", "job b"),
        (f"adapter {a.name}", "continued_from", "job b"),
        ("job b", "made", f"adapter {b.name}"),
    }
    of_c = trace(c)
    # What went on from b's checkpoint came of b too; c came of the checkpoint, and b's adapter had no part in it.
    assert bonds(trace(a)) == bonds(trace(b)) == bonds(of_c) | made_b
    assert bonds(of_c) - made_a - made_b == {
        ("file c0", "trained_on", "job c"),
        ("file c1", "validated_on", "job c"),
        ("job b", "retry_of", "job c"),
        ("job b", "made", f"checkpoint {b.name}:ckpt-step-5"),
        (f"checkpoint {b.name}:ckpt-step-5", "continued_from", "job c"),
        ("job c", "made", f"adapter {c.name}"),
    }
    assert {of_c.nodes[job.id].state for job in (first, second, third)} == {"succeeded"}
    assert not of_c.is_cut


def test_what_went_on_is_followed_to_its_end(grow, trace):
    _, a = grow("a")
    _, b = grow("b", (a.name, a.blob_sha256))
    _, c = grow("c", (b.name, b.blob_sha256))
    assert (f"adapter {b.name}", "continued_from", "job c") in bonds(trace(a))
    assert bonds(trace(a)) == bonds(trace(b)) == bonds(trace(c))


def test_what_was_deleted_stands_there_as_deleted(db, account, grow, trace):
    job, a = grow("a")
    _, b = grow("b", (a.name, a.blob_sha256))
    with db.writing() as session:
        assert adapters.delete(session, account, a.name)
        assert datasets.delete(session, account, job.training_file_id)
    nodes = trace(b).nodes
    assert (nodes[a.id].is_deleted, nodes[job.training_file_id].is_deleted, nodes[b.id].is_deleted) == (
        True,
        True,
        False,
    )


def test_a_source_that_is_no_more_is_named(grow, trace):
    _, a = grow("a", ("ft:gone", "9" * 64))
    found = trace(a)
    assert (found.nodes["ft:gone"].kind, found.nodes["ft:gone"].is_deleted) == ("missing", True)
    assert ("missing ft:gone", "continued_from", "job a") in bonds(found)


def test_a_graph_is_cut_at_its_bound(grow, trace, monkeypatch):
    source = (None, None)
    for letter in "abc":
        _, adapter = grow(letter, source)
        source = adapter.name, adapter.blob_sha256
    monkeypatch.setattr("core.records.lineage.MOST", 5)
    found = trace(adapter)
    assert (len(found.nodes), found.is_cut) == (5, True)


def test_a_finished_run_is_evaluated_by_the_step_that_is_served(db, machine, make_job):
    job_id = make_job()
    held = machine.claim(job_id)

    def told(step, **data):
        return jobs.Event("step", "s", type="metrics", step=step, data={"step": step, "learning_rate": 1.0, **data})

    jobs.record(db, held, [told(1, train_loss=3.0), told(2, train_loss=2.0), told(2, valid_loss=1.5, train_loss=None)])
    outcome = {"served_step": 2, "best_step": 2, "best_valid_loss": 1.5, "stopped_early": False}
    machine.succeed(held, outcome=outcome)
    with db.session() as session:
        assert evaluations(session, [job_id]) == {job_id: {"step": 2, "train_loss": 2.0, "valid_loss": 1.5}}
        assert evaluations(session, []) == {}


def test_a_job_s_graph_has_its_adapter_its_retries_and_what_went_on_from_its_checkpoints(grow, db, account):
    first, a = grow("a")
    second, b = grow("b", (f"{a.name}:ckpt-step-5", "A" * 64))
    third, _ = grow("c", retry_of=first.id)
    grow("d")
    with db.session() as session:
        found = lineage_of_job(session, account, first)
        stranger = lineage_of_job(session, account, grow("e")[0])
    ids = {node.id for node in found.nodes.values() if node.kind in ("job", "adapter")}
    assert {first.id, a.id, second.id, b.id, third.id} <= ids
    assert not {node.name for node in found.nodes.values()} & {"d", "e"}
    assert {edge.bond for edge in found.edges} == {"trained_on", "validated_on", "made", "continued_from", "retry_of"}
    assert {node.name for node in stranger.nodes.values() if node.kind == "job"} == {"e"}
