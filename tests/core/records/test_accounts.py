import subprocess
import sys

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from core.records import accounts, audit, keys
from core.records.tables import ApiKey, Organization, Project


def count(db, table):
    with db.session() as session:
        return session.scalar(select(func.count()).select_from(table))


def account_of(db, text):
    with db.session() as session:
        return accounts.account_of(session, text)


def test_the_first_start_makes_an_administrator_s_key_once(db, tmp_path):
    text = accounts.ensure_first_key(db, tmp_path / "data")
    file = tmp_path / "data" / "admin.key"
    assert file.read_text().strip() == text
    assert file.stat().st_mode & 0o777 == 0o600
    account = account_of(db, text)
    assert (account.is_admin, account.organization_slug) == (True, "default")
    assert accounts.ensure_first_key(db, tmp_path / "data") is None
    assert file.read_text().strip() == text
    assert (count(db, Organization), count(db, Project), count(db, ApiKey)) == (1, 1, 1)


FIRST_KEY = """
import sys
from pathlib import Path
from core.records.accounts import ensure_first_key
from core.records.database import Database
db = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(ensure_first_key(db, Path(sys.argv[2])))
db.close()
"""


def test_processes_that_start_at_once_make_one_key(db, database_url, tmp_path):
    command = [sys.executable, "-c", FIRST_KEY, database_url, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    answers = sorted(child.communicate("go\n")[0].strip() for child in children)
    assert answers[0] == "None"
    assert (tmp_path / "admin.key").read_text().strip() == answers[1]
    assert account_of(db, answers[1]).is_admin


def test_a_crash_before_the_commit_leaves_no_account_and_the_next_start_a_key_that_works(db, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("core.records.accounts._write_secret", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            accounts.ensure_first_key(db, tmp_path)
    assert count(db, Organization) == 0
    assert account_of(db, accounts.ensure_first_key(db, tmp_path)) is not None


def test_the_database_never_sees_a_key(db, account):
    with db.writing() as session:
        key, text = accounts.create_key(session, account, name="ci", environment="local")
    assert text not in str(vars(key))
    assert key.key_sha256 == keys.digest(text)
    assert text.startswith(key.prefix)
    assert len(key.prefix) < len(text) - 25


def test_keys_have_160_bits_and_a_checksum():
    made = {keys.make("production") for _ in range(50)}
    assert len(made) == 50
    assert len(keys.ALPHABET) ** keys.SECRET > 2**160
    for text in made:
        assert text.startswith("graft_production_")
        assert keys.is_well_formed(text)
        damaged = text[:20] + ("a" if text[20] != "a" else "b") + text[21:]
        assert not keys.is_well_formed(damaged)


@pytest.mark.parametrize(
    "text", ["", "graft", "Bearer x", "graft_local_é", "graft_local_" + "a" * 28 + "_00000000", "\x00" * 50]
)
def test_what_is_no_key_is_turned_away_without_a_query(text):
    assert accounts.account_of(None, text) is None


def test_unknown_revoked_and_expired_keys_open_nothing(db, account):
    with db.writing() as session:
        revoked, revoked_text = accounts.create_key(session, account, name="r", environment="local")
        _, expired_text = accounts.create_key(session, account, name="e", environment="local", expires_after_s=-1.0)
        later, later_text = accounts.create_key(session, account, name="l", environment="local", expires_after_s=60)
    assert account_of(db, revoked_text).key_id == revoked.id
    with db.writing() as session:
        assert accounts.revoke_key(session, account, revoked.id)
    assert account_of(db, keys.make("local")) is None
    assert account_of(db, revoked_text) is None
    assert account_of(db, expired_text) is None
    assert account_of(db, later_text).key_id == later.id
    assert not account_of(db, later_text).is_admin


def test_a_key_s_use_is_written_down_to_the_minute(db, account):
    with db.writing() as session:
        _, text = accounts.create_key(session, account, name="ci", environment="local")
    first = account_of(db, text)
    assert first.was_used_lately is False
    accounts.mark_used(db, first)
    assert account_of(db, text).was_used_lately is True


def test_what_is_done_to_keys_is_audited(db, account):
    with db.writing() as session:
        key, _ = accounts.create_key(session, account, name="ci", environment="local")
        accounts.revoke_key(session, account, key.id)
        accounts.revoke_key(session, account, key.id)
    with db.session() as session:
        entries = audit.listed(session, account).rows
        listed = accounts.listed_keys(session, account).rows
    assert [(entry.action, entry.key_id) for entry in entries if entry.target == key.id] in (
        [("key.revoked", account.key_id), ("key.created", account.key_id)],
        [("key.created", account.key_id), ("key.revoked", account.key_id)],  # within one millisecond
    )
    assert {row.name for row in listed} == {"first", "ci"}


def test_an_organisation_s_slug_is_its_own(make_account):
    make_account("acme")
    with pytest.raises(IntegrityError):
        make_account("acme")
