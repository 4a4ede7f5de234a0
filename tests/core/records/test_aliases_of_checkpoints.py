"""An alias may mean another step of a version's job; what it means is neither deleted nor thinned."""

import pytest
from sqlalchemy import select

from core.blobs import Blob
from core.records import adapters, aliases, audit
from core.records.adapters import Aliased
from core.records.aliases import Meaning
from core.records.jobs import record_checkpoint
from core.records.leases import Fenced
from core.records.tables import Checkpoint


@pytest.fixture
def done(db, machine, make_job):
    """The adapter of a job with the suffix bot, and its checkpoints of steps 1 and 2, by step."""
    held = machine.claim(make_job(suffix="bot"))
    for step, letter in ((1, "1"), (2, "2")):
        record_checkpoint(db, held, step=step, metrics={}, adapter=Blob(letter * 64, 7))
    adapter = machine.succeed(held, "b")
    with db.session() as session:
        rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == adapter.job_id)).all()
    return adapter, {row.step: row for row in rows}


@pytest.fixture
def means(db, account):
    def ask(name, owner=account):
        with db.session() as session:
            model = adapters.resolve(session, owner, name, base_models=())
            return model and (model.name, model.sha256)

    return ask


@pytest.fixture
def promote(db, account):
    def move(adapter, step=None, alias="production"):
        with db.writing() as session:
            aliases.move(session, account, adapter, alias, step=step)

    return move


def named(row):
    return row.model_name, row.adapter_sha256


def test_an_alias_means_a_checkpoint_until_it_is_moved(db, account, done, means, promote):
    adapter, steps = done
    promote(adapter, steps[1])
    assert means("bot@production") == named(steps[1])
    promote(adapter, steps[2])
    assert means("bot@production") == named(steps[2])
    promote(adapter)
    assert means("bot@production") == (adapter.name, adapter.blob_sha256)
    with db.session() as session:
        said = [entry.target for entry in audit.listed(session, account).rows if entry.action == "alias.moved"]
    assert said[::-1] == [
        "bot@production to v1 step 1",
        "bot@production from v1 step 1 to v1 step 2",
        "bot@production from v1 step 2 to v1",
    ]


def test_an_alias_of_a_checkpoint_is_told_with_its_step_and_apart_from_the_version_s(db, account, done, promote):
    adapter, steps = done
    promote(adapter, steps[1])
    promote(adapter, alias="stable")
    with db.session() as session:
        of_step = Meaning(1, 1, steps[1].id)
        assert aliases.of_family(session, account, "bot") == {"production": of_step, "stable": Meaning(1)}
        assert aliases.pointing_to(session, account, [adapter.id]) == {adapter.id: ["stable"]}
        assert aliases.of_steps(session, account, [adapter.id]) == {adapter.id: {"production": of_step}}


def test_what_an_alias_means_is_not_deleted_and_its_neighbour_is(db, account, done, means, promote):
    adapter, steps = done
    promote(adapter, steps[1])
    with db.writing() as session, pytest.raises(Aliased, match="bot@production means this checkpoint"):
        adapters.delete(session, account, steps[1].model_name)
    with db.writing() as session, pytest.raises(Aliased, match="bot@production means a checkpoint that would go"):
        adapters.delete(session, account, adapter.name)
    with db.writing() as session:
        assert adapters.delete(session, account, steps[2].model_name)
    assert means("bot@production") == named(steps[1])
    with db.writing() as session:
        assert aliases.remove(session, account, "bot", "production")
        assert adapters.delete(session, account, steps[1].model_name)
    assert means("bot@production") is None


def test_a_job_that_could_still_thin_its_checkpoints_has_none_that_an_alias_can_mean(db, account, machine, make_job):
    held = machine.claim(make_job(suffix="bot"))
    name = record_checkpoint(db, held, step=1, metrics={}, adapter=Blob("1" * 64, 7)).model_name
    with db.session() as session:
        assert adapters.resolve(session, account, name, base_models=()).name == name
        assert adapters.made_by_step(session, account, name) is None
    machine.succeed(held, "b")
    with db.session() as session:
        assert adapters.made_by_step(session, account, name)[1].step == 1
    with pytest.raises(Fenced):  # it is held no more, so nothing is written down of it, nor thinned
        record_checkpoint(db, held, step=2, metrics={}, adapter=Blob("2" * 64, 7), keep_models=1)


def test_a_stranger_s_checkpoints_and_their_aliases_are_not_seen(db, done, means, promote, make_account):
    adapter, steps = done
    promote(adapter, steps[1])
    stranger = make_account("stranger")
    assert means("bot@production", stranger) is None
    with db.session() as session:
        assert adapters.made_by_step(session, stranger, steps[1].model_name) is None
        assert adapters.made_by_step(session, stranger, "bot@production") is None
        assert aliases.of_steps(session, stranger, [adapter.id]) == {}
