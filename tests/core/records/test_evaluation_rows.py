"""Rows are kept as they were said, read as one dataset without repetitions, bounded, and a project's own."""

import json

import pytest
from sqlalchemy import select

from core.records import audit, evaluation_rows
from core.records.tables import EvaluationRow
from core.specs.dataset import ChatExample


@pytest.fixture
def keep(db, account):
    def add(answer, *earlier, owner=account, model=None):
        turns = [{"role": "user", "content": "Is it open?"}, *earlier, {"role": "assistant", "content": answer}]
        with db.writing() as session:
            return evaluation_rows.add(session, owner, ChatExample(messages=turns), model=model)

    return add


def lines(db, account):
    with db.session() as session:
        return [json.loads(line)["messages"] for line in evaluation_rows.lines(session, account)]


def test_rows_are_lines_of_a_dataset_oldest_first_each_once(db, account, keep):
    earlier = [
        {"role": "assistant", "content": "Perhaps.", "weight": 0},
        {"role": "user", "content": "日本?"},
    ]
    keep("Yes.", model="ft:tiny:acme:bot:1")
    keep("No.", *earlier)
    keep("Yes.")
    said = lines(db, account)
    assert [turns[-1]["content"] for turns in said] == ["Yes.", "No."]
    assert said[1][1:3] == earlier
    with db.session() as session:
        newest = evaluation_rows.listed(session, account, limit=2)
        assert ([row.model for row in newest.rows], newest.has_more) == ([None, None], True)
        assert evaluation_rows.counted(session, account) == 3


def test_a_deleted_row_leaves_no_text_behind(db, account, keep):
    row = keep("Yes.")
    with db.writing() as session:
        assert evaluation_rows.delete(session, account, row.id)
        assert not evaluation_rows.delete(session, account, row.id)
    with db.session() as session:
        assert session.scalars(select(EvaluationRow)).all() == []
        entry = audit.listed(session, account, action="evaluation_row.deleted").rows[0]
    assert entry.target == row.id


def test_a_project_keeps_so_many_rows_of_so_many_bytes(db, account, keep, monkeypatch):
    monkeypatch.setattr(evaluation_rows, "MOST", 2)
    keep("one")
    keep("two")
    with pytest.raises(evaluation_rows.TooMany, match="at most 2 evaluation rows"):
        keep("three")
    monkeypatch.setattr(evaluation_rows, "MOST", 9)
    monkeypatch.setattr(evaluation_rows, "MOST_BYTES", 200)
    with pytest.raises(evaluation_rows.TooMany, match="200 bytes"):
        keep("three")
    assert len(lines(db, account)) == 2


def test_a_row_is_no_longer_than_a_dataset_s_line(keep, monkeypatch):
    monkeypatch.setattr(evaluation_rows, "MAX_LINE_BYTES", 80)
    with pytest.raises(evaluation_rows.TooLong, match="at most 80"):
        keep("x" * 80)


def test_another_s_rows_are_not_there(db, account, keep, make_account):
    stranger = make_account("stranger")
    row = keep("Yes.")
    assert lines(db, stranger) == []
    with db.writing() as session:
        assert not evaluation_rows.delete(session, stranger, row.id)
        assert evaluation_rows.counted(session, stranger) == 0
    assert len(lines(db, account)) == 1
