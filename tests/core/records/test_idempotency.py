from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from core.blobs import Blob
from core.records import datasets, idempotency
from core.records.idempotency import IdempotencyMismatch
from core.records.tables import File, Idempotency

ASKED = {"route": "POST /v1/fine_tuning/jobs", "key": "k-1", "body": b'{"a": 1}'}


def test_the_same_request_gets_the_same_answer(db, account):
    with db.writing() as session:
        assert idempotency.replay(session, account, **ASKED) is None
        idempotency.keep(session, account, **ASKED, status=200, answer={"id": "ftjob-1"})
    with db.writing() as session:
        kept = idempotency.replay(session, account, **ASKED)
        assert (kept.status, kept.body) == (200, {"id": "ftjob-1"})
        assert idempotency.replay(session, account, **ASKED | {"route": "POST /v1/files"}) is None
        with pytest.raises(IdempotencyMismatch):
            idempotency.replay(session, account, **ASKED | {"body": b'{"a": 2}'})


def test_the_key_itself_is_not_stored(db, account):
    with db.writing() as session:
        idempotency.keep(session, account, **ASKED | {"key": "canary"}, status=200, answer={})
    with db.session() as session:
        assert "canary" not in str(vars(session.scalars(select(Idempotency)).one()))


def test_many_repetitions_at_once_make_one_thing(db, account):
    def create(_):
        with db.writing() as session:
            kept = idempotency.replay(session, account, **ASKED)
            if kept is not None:
                return kept.body["id"]
            file = datasets.add(session, account, filename="x", purpose="fine-tune", blob=Blob("a" * 64, 1))
            idempotency.keep(session, account, **ASKED, status=200, answer={"id": file.id})
            return file.id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(create, range(16)))
    with db.session() as session:
        assert session.scalar(select(func.count()).select_from(File)) == 1
    assert len(set(ids)) == 1


def test_an_answer_is_kept_for_a_day(db, account, machine):
    with db.writing() as session:
        idempotency.keep(session, account, **ASKED, status=200, answer={})
        session.execute(update(Idempotency).values(expires_at=1.0))
    with db.writing() as session:
        assert idempotency.replay(session, account, **ASKED) is None
        idempotency.keep(session, account, **ASKED, status=200, answer={})
        session.execute(update(Idempotency).values(expires_at=1.0))
    machine.sweep()
    with db.session() as session:
        assert session.scalar(select(func.count()).select_from(Idempotency)) == 0
