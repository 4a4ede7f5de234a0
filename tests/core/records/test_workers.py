"""Who is at work, and the wish that one take no more."""

import pytest
from sqlalchemy import literal, select

from core.records import audit, presences, usage
from core.records.tables import Presence
from core.records.usage_by_day import Tokens, _number, by_day_and_model
from core.records.workers import ask_to_drain, living


@pytest.fixture
def beat(db):
    def say(worker_id="trainer-1", role="trainer", **details):
        return presences.beat(db, worker_id, role=role, is_ready=True, details=details)

    return say


def test_workers_are_told_with_their_jobs_and_their_silence(machine, make_job, make_account, beat):
    beat(owner="worker")
    beat("engine-1", role="engine")
    mine, theirs = make_job(), make_job(make_account("stranger"))
    for job_id in (mine, theirs):
        machine.claim(job_id)
    with machine.db.writing() as session:
        session.get_one(Presence, "trainer-1").beat_at -= 3
        found = living(session, machine.account)
    assert [one.presence.id for one in found] == ["engine-1", "trainer-1"]
    engine, trainer = found
    assert (list(engine.job_ids), engine.n_jobs) == ([], 0)
    assert (list(trainer.job_ids), trainer.n_jobs) == ([mine], 2)
    assert 3 <= trainer.silent_s < presences.STALE_S


def test_who_has_not_spoken_lately_is_neither_told_nor_drained(db, account, beat):
    beat()
    with db.writing() as session:
        session.get_one(Presence, "trainer-1").beat_at -= presences.STALE_S + 1
    with db.writing() as session:
        assert living(session, account) == []
        assert not ask_to_drain(session, account, "trainer-1")
        assert not ask_to_drain(session, account, "nobody")


def test_a_worker_hears_with_its_next_beat_that_it_is_to_drain(db, account, beat):
    assert beat() is False
    with db.writing() as session:
        assert ask_to_drain(session, account, "trainer-1")
    assert beat() is True
    assert beat("trainer-2") is False
    with db.writing() as session:
        assert ask_to_drain(session, account, "trainer-1")
    with db.session() as session:
        said = [(entry.action, entry.target) for entry in audit.listed(session, account).rows]
    assert said.count(("worker.drained", "trainer-1")) == 1


def test_the_audit_is_searched_by_what_who_and_when(db, account, make_account):
    make_account("stranger")
    with db.writing() as session:
        for target in ("a", "b"):
            audit.note(session, account, "file.deleted", target)
        audit.note(session, account, "job.cancelled", "a")
        rows = audit.listed(session, account).rows

    def found(**sought):
        with db.session() as session:
            return [(row.action, row.target) for row in audit.listed(session, account, **sought).rows]

    assert sorted(found(action="file.deleted")) == [("file.deleted", "a"), ("file.deleted", "b")]
    assert sorted(found(target="a")) == [("file.deleted", "a"), ("job.cancelled", "a")]
    assert found(action="file.deleted", target="b") == [("file.deleted", "b")]
    assert len(found(key_id=account.key_id)) == 4
    assert found(key_id="key-nobody") == []
    assert found(until=rows[-1].created_at) == []
    assert len(found(since=rows[-1].created_at, action=None)) == len(rows)


def test_usage_is_of_each_model_on_each_day(db, account, machine, make_job, make_account):
    def served(request_id, model, owner=account):
        counted = {"prompt_tokens": 3, "completion_tokens": 2}
        with db.writing() as session:
            usage.record(session, owner, request_id=request_id, model=model, **counted)

    name = machine.succeed(machine.claim(make_job(suffix="bot"))).name
    for number, model in enumerate((name, name, "tiny")):
        served(f"r{number}", model)
    served("theirs", "tiny", make_account("stranger"))
    with db.session() as session:
        found = by_day_and_model(session, account, days=3)
    days = list(found)
    assert [day % 86_400 for day in days] == [0, 0, 0]
    assert [found[day] for day in days[:2]] == [[], []]
    assert found[days[2]] == [
        Tokens(2, 6, 4, day=days[2], model=name, trained_tokens=90),
        Tokens(1, 3, 2, day=days[2], model="tiny"),
    ]


def test_the_last_half_second_of_a_day_is_of_that_day(db):
    midnight = 20_000 * 86_400
    with db.session() as session:
        numbers = [session.scalar(select(_number(literal(midnight + part)))) for part in (-0.6, -0.4, 0.0, 0.6)]
    assert numbers == [19_999, 19_999, 20_000, 20_000]
