import pytest
from sqlalchemy.exc import IntegrityError

from core.blobs import Blob
from core.records import adapters, audit, datasets, jobs
from core.records.names import checkpoint_name, model_name
from core.records.tables import Adapter, Checkpoint

BASES = {"tiny"}


def blob(letter):
    return Blob(letter * 64, 7)


def resolve(db, account, name):
    with db.session() as session:
        return adapters.resolve(session, account, name, base_models=BASES)


@pytest.fixture
def finished(db, machine, make_job):
    """A job with a checkpoint and an adapter: its id and the adapter's name."""
    job_id = make_job(suffix="My Bot!")
    held = machine.claim(job_id)
    jobs.record_checkpoint(db, held, step=5, metrics={"train_loss": 1.5}, state=blob("c"), adapter=blob("d"))
    return job_id, machine.succeed(held, results=blob("e")).name


def test_a_model_s_name_tells_base_organisation_suffix_and_job():
    assert model_name("tiny", "acme", "My Bot!", "ftjob-0123456789") == "ft:tiny:acme:my-bot:01234567"
    assert model_name("tiny", "acme", None, "ftjob-0123456789") == "ft:tiny:acme::01234567"
    assert model_name("tiny", "acme", "a:b/../c", "ftjob-0123456789") == "ft:tiny:acme:a-b-..-c:01234567"
    assert checkpoint_name("ft:tiny:acme::01234567", 40) == "ft:tiny:acme::01234567:ckpt-step-40"
    longest = checkpoint_name(model_name("b" * 64, "o" * 64, "s" * 64, "ftjob-" + "i" * 24), 10**12)
    assert len(longest) <= 255


def test_each_name_means_what_it_says(db, account, finished):
    job_id, name = finished
    assert resolve(db, account, "tiny") == adapters.Model(name="tiny", base_model="tiny")
    model = resolve(db, account, name)
    assert (model.name, model.base_model, model.sha256, model.job_id) == (name, "tiny", "b" * 64, job_id)
    assert resolve(db, account, model.adapter_id) == model
    step = resolve(db, account, f"{name}:ckpt-step-5")
    assert (step.name, step.base_model, step.sha256) == (f"{name}:ckpt-step-5", "tiny", "d" * 64)
    for unknown in ("", "tiny2", name + "x", f"{name}:ckpt-step-6", "../../etc/passwd", "%", "a\x0b"):
        assert resolve(db, account, unknown) is None


def test_success_leaves_an_adapter_a_result_file_and_the_row_together(db, account, machine, finished):
    job_id, name = finished
    job = machine.job(job_id)
    with db.session() as session:
        adapter = adapters.find(session, account, name)
        results = datasets.find(session, account, job.result_file_id)
    assert (adapter.job_id, adapter.base_model, adapter.peft_type, adapter.details) == (
        job_id,
        "tiny",
        "LORA",
        {"parameters": 1},
    )
    assert (results.purpose, results.blob_sha256, results.size_bytes) == ("fine-tune-results", "e" * 64, 7)


def test_success_is_all_or_nothing(db, account, machine, make_job):
    first = make_job()
    name = machine.succeed(machine.claim(first)).name
    second = make_job()
    held = machine.claim(second)
    with db.writing() as session:
        session.get_one(Adapter, adapters.find(session, account, name).id).name = model_name(
            "tiny", "acme", None, second
        )
    with pytest.raises(IntegrityError):
        machine.succeed(held, results=blob("e"))
    assert (machine.job(second).state, machine.job(second).result_file_id) == ("running", None)
    with db.session() as session:
        assert [file.purpose for file in datasets.listed(session, account).rows] == ["fine-tune", "fine-tune"]


def test_what_is_deleted_is_missing(db, account, finished):
    job_id, name = finished
    model = resolve(db, account, name)
    with db.writing() as session:
        assert adapters.delete(session, account, name)
    for gone in (name, model.adapter_id, f"{name}:ckpt-step-5"):
        assert resolve(db, account, gone) is None
    with db.writing() as session:
        assert not adapters.delete(session, account, name)
        assert adapters.models(session, account) == []
        assert list(adapters.listed(session, account).rows) == []
        assert list(jobs.checkpoints(session, account, job_id).rows) == []
        assert [row.target for row in audit.listed(session, account).rows if row.action == "model.deleted"] == [name]
        assert session.query(Checkpoint.state_sha256).all() == [(None,)]


def test_a_checkpoint_is_deleted_alone(db, account, finished):
    _, name = finished
    with db.writing() as session:
        assert adapters.delete(session, account, f"{name}:ckpt-step-5")
    assert resolve(db, account, f"{name}:ckpt-step-5") is None
    assert resolve(db, account, name) is not None


def test_all_models_of_an_account_are_listed_checkpoints_too(db, account, finished):
    _, name = finished
    with db.session() as session:
        assert [model.name for model in adapters.models(session, account)] == [name, f"{name}:ckpt-step-5"]


def test_only_the_newest_checkpoints_are_kept(db, account, machine, make_job):
    job_id = make_job()
    held = machine.claim()
    for step in (1, 2, 3, 4, 5):
        made = {"state": blob("a"), "adapter": blob("b") if step != 4 else None}
        jobs.record_checkpoint(db, held, step=step, metrics={"train_loss": 1 / step}, **made)
    work = jobs.work_of(db, held)
    assert [row.step for row in work.checkpoints] == [5, 4]
    with db.session() as session:
        usable = jobs.checkpoints(session, account, job_id).rows
    assert [(row.step, row.metrics["train_loss"]) for row in usable] == [(5, 1 / 5), (3, 1 / 3), (2, 1 / 2)]
    assert usable[0].model_name == model_name("tiny", "acme", None, job_id) + ":ckpt-step-5"


@pytest.mark.parametrize(("keep_step", "usable"), [(1, [5, 4, 1]), (5, [5, 4, 3]), (None, [5, 4])])
def test_the_best_checkpoint_stays_usable_beside_the_newest(machine, make_job, keep_step, usable):
    db, account, job_id, held = machine.db, machine.account, make_job(), machine.claim()
    for step in (1, 2, 3, 4, 5):
        jobs.record_checkpoint(db, held, step=step, metrics={}, adapter=blob("b"), keep_models=2, keep_step=keep_step)
    with db.session() as session:
        assert [row.step for row in jobs.checkpoints(session, account, job_id).rows] == usable


def test_a_step_that_is_reached_again_replaces_its_checkpoint(db, machine, make_job):
    job_id = make_job()
    first = jobs.record_checkpoint(db, machine.claim(), step=3, metrics={}, state=blob("a"), adapter=blob("a"))
    machine.set(job_id, progress_at=1.0)
    machine.expire(job_id)
    heir = machine.claim()
    second = jobs.record_checkpoint(db, heir, step=3, metrics={"train_loss": 0.5}, state=blob("b"), adapter=blob("b"))
    assert second.id == first.id
    (kept,) = jobs.work_of(db, heir).checkpoints
    assert (kept.step, kept.lease_epoch, kept.state_sha256, kept.metrics) == (3, 2, "b" * 64, {"train_loss": 0.5})


def test_adapters_of_no_job_are_many_found_by_name_and_deleted_one_by_one(db, account, make_account):
    made, stranger = [], make_account("other")
    for letter in "ab":
        with db.writing() as session:
            facts = {"base_model": "tiny", "suffix": "From Afar", "peft_type": "LORA", "details": {"origin": "import"}}
            made.append(adapters.register(session, account, blob=blob(letter), **facts))
    assert all(row.name.startswith("ft:tiny:acme:from-afar:") and row.job_id is None for row in made)
    assert resolve(db, account, made[0].name).sha256 == "a" * 64
    assert resolve(db, stranger, made[0].name) is None
    with db.session() as session:
        told = [(e.action, e.target) for e in audit.listed(session, account).rows if e.action != "key.created"]
        assert told == [("adapter.imported", row.name) for row in reversed(made)]
    with db.writing() as session:
        assert adapters.delete(session, account, made[0].name)
    assert resolve(db, account, made[0].name) is None
    assert resolve(db, account, made[1].id).name == made[1].name
