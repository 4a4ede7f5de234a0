"""A registry shows a family once, by its newest living version, however many versions it has."""

import pytest

from core.blobs import Blob
from core.records import adapters, aliases, families
from core.records.aliases import Meaning


@pytest.fixture
def made(db, account):
    """made(suffix): a new adapter of that suffix."""

    def make(suffix, owner=account):
        facts = {"base_model": "tiny", "suffix": suffix, "peft_type": "LORA", "details": {}}
        with db.writing() as session:
            return adapters.register(session, owner, blob=Blob("a" * 64, 7), **facts)

    return make


def shown(db, account, **wanted):
    with db.session() as session:
        page = families.listed(session, account, **wanted)
        found = families.of_heads(session, account, page.rows)
    return [(one.name, [row.version for row in one.versions], one.n_versions) for one in found], page


def test_versions_of_one_suffix_stand_together_newest_first(db, account, made):
    made("bot")
    made(None)
    for _ in range(families.SHOWN + 1):
        made("else")
    newest = made("bot")
    found, _ = shown(db, account)
    assert found == [("bot", [2, 1], 2), ("else", [6, 5, 4, 3, 2], 6), (None, [None], 1)]
    with db.writing() as session:
        adapters.delete(session, account, newest.name)
    assert min(shown(db, account)[0], key=str) == ("bot", [1], 1)


def test_families_are_paged(db, account, made):
    for suffix in ("a", "b", "b", "c"):
        made(suffix)
    first, page = shown(db, account, limit=2)
    rest, last = shown(db, account, limit=2, after=page.rows[-1].id)
    assert ([name for name, *_ in first], page.has_more) == (["c", "b"], True)
    assert ([name for name, *_ in rest], last.has_more) == (["a"], False)


def test_another_s_version_hides_none_of_ours(db, account, made, make_account):
    made("bot")
    stranger = make_account("stranger")
    for _ in range(3):
        made("bot", stranger)
    assert shown(db, account)[0] == [("bot", [1], 1)]


def test_a_family_says_which_version_each_of_its_aliases_means(db, account, made):
    one, two = made("bot"), made("bot")
    with db.writing() as session:
        aliases.move(session, account, one, "production")
        aliases.move(session, account, two, "canary")
    with db.session() as session:
        assert aliases.of_family(session, account, "bot") == {"canary": Meaning(2), "production": Meaning(1)}
        assert aliases.of_family(session, account, "else") == {}
