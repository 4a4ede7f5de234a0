import pytest
from sqlalchemy import select, update

from core.blobs import Blob
from core.records import datasets, presences, usage
from core.records.pages import UnknownCursor
from core.records.tables import File, Presence, Usage


def add(session, account, **said):
    given = {"filename": "train.jsonl", "purpose": "fine-tune", "blob": Blob("a" * 64, 12)}
    return datasets.add(session, account, **given | said)


def test_a_file_is_remembered_with_what_was_found_in_it(db, account):
    found = {"valid": True, "format": "chat", "n_examples": 3, "errors": []}
    with db.writing() as session:
        file_id = add(session, account, validation=found).id
    with db.session() as session:
        file = datasets.find(session, account, file_id)
    assert (file.filename, file.size_bytes, file.blob_sha256, file.status) == ("train.jsonl", 12, "a" * 64, "processed")
    assert file.validation == found


def test_deleted_and_expired_files_are_missing(db, account):
    with db.writing() as session:
        kept, deleted, expired = (
            add(session, account, expires_after_s=60.0),
            add(session, account),
            add(session, account, expires_after_s=60.0),
        )
        session.execute(update(File).where(File.id == expired.id).values(expires_at=1.0))
    with db.writing() as session:
        assert datasets.delete(session, account, deleted.id)
        assert not datasets.delete(session, account, deleted.id)
        assert not datasets.delete(session, account, expired.id)
    with db.session() as session:
        assert [file.id for file in datasets.listed(session, account).rows] == [kept.id]
        assert datasets.find(session, account, deleted.id) is None
        with pytest.raises(UnknownCursor, match="nothing here has the id"):
            datasets.listed(session, account, after=deleted.id)


def test_files_are_listed_by_purpose_and_in_either_order(db, account):
    with db.writing() as session:
        made = [add(session, account, purpose=purpose) for purpose in ("fine-tune", "batch", "fine-tune")]
        for age, file in enumerate(made):
            file.created_at = float(age)
    a, b, c = (file.id for file in made)
    with db.session() as session:
        listed = {
            "newest": datasets.listed(session, account),
            "oldest": datasets.listed(session, account, is_ascending=True),
            "after b": datasets.listed(session, account, is_ascending=True, after=b),
            "before b": datasets.listed(session, account, after=b),
            "tuning": datasets.listed(session, account, purpose="fine-tune", limit=1),
        }
    assert {name: [file.id for file in page.rows] for name, page in listed.items()} == {
        "newest": [c, b, a],
        "oldest": [a, b, c],
        "after b": [c],
        "before b": [a],
        "tuning": [c],
    }
    assert {name for name, page in listed.items() if page.has_more} == {"tuning"}


def test_who_speaks_is_alive_and_who_is_silent_is_not(db):
    presences.beat(
        db, "engine-1", role="engine", is_ready=False, details={}, url="http://127.0.0.1:1", base_model="tiny"
    )
    presences.beat(db, "engine-1", role="engine", is_ready=True, details={"rows": 4}, url="http://127.0.0.1:1")
    presences.beat(db, "trainer-1", role="trainer", is_ready=True, details={})
    with db.session() as session:
        (engine,) = presences.alive(session, "engine")
        assert [row.id for row in presences.alive(session, "trainer")] == ["trainer-1"]
    assert (engine.is_ready, engine.details, engine.url, engine.base_model) == (
        True,
        {"rows": 4},
        "http://127.0.0.1:1",
        None,
    )
    assert engine.started_at <= engine.beat_at
    presences.leave(db, "trainer-1")
    with db.writing() as session:
        session.execute(update(Presence).values(beat_at=Presence.beat_at - 6.1))
    with db.session() as session:
        assert list(presences.alive(session, "engine")) == list(presences.alive(session, "trainer")) == []
        assert len(presences.alive(session, "engine", stale_s=60)) == 1


def test_tokens_are_counted_once_for_a_request(db, account):
    for tokens in (5, 6):
        with db.writing() as session:
            counts = {"prompt_tokens": 3, "completion_tokens": tokens}
            usage.record(session, account, request_id="req-1", model="tiny", **counts)
    with db.session() as session:
        (row,) = session.scalars(select(Usage)).all()
    assert (row.prompt_tokens, row.completion_tokens, row.project_id) == (3, 5, account.project_id)
