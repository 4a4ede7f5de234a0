"""Versions are numbered once; an alias means one of them at a time; what it means is not deleted."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from core.blobs import Blob
from core.records import adapters, aliases, audit
from core.records.aliases import UnfitAlias
from core.records.pages import UnknownCursor


@pytest.fixture
def made(db, account):
    """made(suffix): a new adapter of that suffix."""
    letters = iter("abcdef0123456789")

    def make(suffix="bot", owner=account, base_model="tiny"):
        facts = {"base_model": base_model, "suffix": suffix, "peft_type": "LORA", "details": {}}
        with db.writing() as session:
            return adapters.register(session, owner, blob=Blob(next(letters) * 64, 7), **facts)

    return make


@pytest.fixture
def means(db, account):
    def ask(name, owner=account):
        with db.session() as session:
            model = adapters.resolve(session, owner, name, base_models={"tiny", "tiny@nf4"})
            return model and model.adapter_id

    return ask


@pytest.fixture
def promote(db, account):
    def move(adapter, alias="production", owner=account):
        with db.writing() as session:
            aliases.move(session, owner, adapter, alias)

    return move


def test_adapters_of_one_suffix_are_numbered_and_found_by_their_number(made, means):
    one, other, two = made("My Bot!"), made("else"), made("my-bot", base_model="tiny2")
    assert [(row.family, row.version) for row in (one, other, two)] == [("my-bot", 1), ("else", 1), ("my-bot", 2)]
    assert [means("my-bot@v1"), means("my-bot@v2"), means("else@v1")] == [one.id, two.id, other.id]
    for name in ("my-bot@v3", "my-bot@v0", "my-bot@v01", "my-bot", "my-bot@", "@v1", "nobody@v1", "my-bot@V1"):
        assert means(name) is None


def test_a_finished_job_s_adapter_has_a_version_too(machine, make_job):
    versions = [machine.succeed(machine.claim(make_job(suffix="bot")), letter).version for letter in "bc"]
    assert versions == [1, 2]
    assert machine.succeed(machine.claim(make_job())).version is None


def test_a_number_is_given_once_whatever_is_deleted(db, account, made, means):
    first = made()
    with db.writing() as session:
        adapters.delete(session, account, first.name)
    assert made().version == 2
    assert means("bot@v1") is None


def test_numbers_made_at_once_are_different(made):
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda _: made(), range(8)))
    assert sorted(row.version for row in rows) == list(range(1, 9))


def test_an_alias_means_one_version_until_it_is_moved(db, account, made, means, promote):
    one, two = made(), made()
    assert means("bot@production") is None
    promote(one)
    assert means("bot@production") == one.id
    promote(two)
    promote(one, "staging")
    assert (means("bot@production"), means("bot@staging")) == (two.id, one.id)
    with db.session() as session:
        assert aliases.pointing_to(session, account, [one.id, two.id]) == {one.id: ["staging"], two.id: ["production"]}
        said = [entry.target for entry in audit.listed(session, account).rows if entry.action == "alias.moved"]
    assert said == ["bot@staging to v1", "bot@production from v1 to v2", "bot@production to v1"]


def test_what_an_alias_means_is_not_deleted(db, account, made, means, promote):
    row = made()
    promote(row)
    with db.writing() as session, pytest.raises(adapters.Aliased, match="bot@production"):
        adapters.delete(session, account, row.name)
    assert means(row.name) == row.id
    with db.writing() as session:
        assert aliases.remove(session, account, "bot", "production")
        assert not aliases.remove(session, account, "bot", "production")
        assert adapters.delete(session, account, row.name)
    assert means("bot@production") is None


@pytest.mark.parametrize("alias", ["", "v1", "v12", "V", "nf4", "bf16", "a" * 33, "1st", "a b", "a@b", "ä", "a\n"])
def test_what_is_no_alias_is_refused(made, promote, alias):
    with pytest.raises(UnfitAlias):
        promote(made(), alias)


def test_without_a_suffix_there_is_no_alias(made, promote):
    with pytest.raises(UnfitAlias, match="suffix"):
        promote(made(None))


def test_a_base_model_s_name_stays_its_own(made, promote, means):
    row = made("tiny")
    promote(row, "nf4x")
    assert (means("tiny@v1"), means("tiny@nf4x"), means("tiny@nf4"), means("tiny")) == (row.id, row.id, None, None)


def test_versions_are_paged_newest_first(db, account, made):
    rows = [made() for _ in range(3)]
    with db.session() as session:
        first = aliases.versions(session, account, "bot", limit=2)
        second = aliases.versions(session, account, "bot", after=2, limit=2)
        with pytest.raises(UnknownCursor):
            aliases.versions(session, account, "bot", after=9)
    assert [row.id for row in first.rows] == [rows[2].id, rows[1].id]
    assert (first.has_more, [row.id for row in second.rows], second.has_more) == (True, [rows[0].id], False)


def test_families_and_aliases_are_a_project_s_own(made, means, promote, make_account):
    stranger = make_account("stranger")
    mine, theirs = made(), made(owner=stranger)
    assert (mine.version, theirs.version) == (1, 1)
    promote(mine)
    promote(theirs, owner=stranger)
    assert (means("bot@production"), means("bot@production", stranger)) == (mine.id, theirs.id)


def test_a_stranger_s_versions_and_aliases_are_not_seen(db, made, promote, make_account):
    row, stranger = made(), make_account("stranger")
    promote(row)
    with db.writing() as session:
        assert aliases.pointing_to(session, stranger, [row.id]) == {}
        assert aliases.versions(session, stranger, "bot").rows == []
        assert not aliases.remove(session, stranger, "bot", "production")
