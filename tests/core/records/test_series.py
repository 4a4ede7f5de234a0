"""A job's metrics as series: nothing told is lost by thinning, and a step told twice counts once."""

import random

import pytest

from core.records import jobs
from core.records.series import metrics, thinned


def step(number, **told):
    return jobs.Event("step", f"Step {number}", type="metrics", step=number, data={"step": number, **told})


@pytest.fixture
def ask(db, account, make_job, machine):
    """ask(events, **range): the metrics of a job that told of these events."""

    def answer(events, owner=account, **wanted):
        job_id = make_job()
        jobs.record(db, machine.claim(job_id), events)
        with db.session() as session:
            return metrics(session, owner, job_id, **{"from_step": 1, "to_step": None, "resolution": 1000, **wanted})

    return answer


def test_every_point_is_there_where_there_is_room(ask):
    events = [step(n, train_loss=10.0 - n, valid_loss=None) for n in range(1, 6)]
    events.append(step(5, train_loss=None, valid_loss=0.5, best_step=5))
    found = ask(events)
    assert (found.first_step, found.last_step, found.width) == (1, 5, 1)
    loss = found.series["train_loss"]
    assert (loss.steps, loss.values) == ([1, 2, 3, 4, 5], [9.0, 8.0, 7.0, 6.0, 5.0])
    assert (loss.lows, loss.highs) == (loss.values, loss.values)
    assert (found.series["valid_loss"].steps, found.series["valid_loss"].values) == ([5], [0.5])
    assert set(found.series) == {"train_loss", "valid_loss"}


def test_a_step_told_again_after_a_resume_counts_as_told_last(ask):
    found = ask([step(1, train_loss=4.0), step(2, train_loss=3.0), step(2, train_loss=2.0)])
    assert found.series["train_loss"].values == [4.0, 2.0]


def test_a_range_holds_both_its_ends_and_says_where_a_stream_goes_on(ask, db, account):
    found = ask([step(n, train_loss=float(n)) for n in range(1, 11)], from_step=3, to_step=6)
    assert found.series["train_loss"].steps == [3, 4, 5, 6]
    with db.session() as session:
        job_id = jobs.listed(session, account).rows[0].id
        behind = jobs.events_behind(session, account, job_id, found.last_event)
    assert [event.step for event in behind] == [7, 8, 9, 10]


def test_thinned_a_spike_is_still_seen(ask):
    events = [step(n, train_loss=99.0 if n == 357 else 1.0) for n in range(1, 1001)]
    found = ask(events, resolution=10)
    loss = found.series["train_loss"]
    assert (found.width, len(loss.steps)) == (100, 10)
    assert (loss.highs[3], loss.lows[3], loss.values[3]) == (99.0, 1.0, pytest.approx(1.98))
    assert loss.steps == list(range(100, 1001, 100))


def test_ranks_are_told_where_they_moved(ask):
    events = [step(1, ranks={"a": 12, "b": 12}), step(2), step(3, ranks={"a": 9, "b": 4}), step(4, ranks={"b": 2})]
    found = ask(events)
    assert (found.ranks.steps, found.ranks.modules) == ([1, 3, 4], ["a", "b"])
    assert found.ranks.values == [[12, 12], [9, 4], [0, 2]]


def test_what_is_no_number_is_no_point(ask):
    found = ask([step(1, train_loss=1.0, odd=True, name="x"), step(2, train_loss=2.0)])
    assert set(found.series) == {"train_loss"}


def test_a_job_without_a_step_has_no_series_and_a_stranger_s_has_none(ask, make_account):
    assert (ask([]).series, ask([]).last_event) == ({}, 0)
    assert ask([step(1, train_loss=1.0)], owner=make_account("stranger")).series == {}


@pytest.mark.parametrize("seed", range(20))
def test_thinning_is_its_plain_loop(seed):
    chance = random.Random(seed)
    told = [(n, {"x": chance.random()} if chance.random() < 0.7 else {}) for n in range(5, 5 + chance.randint(1, 90))]
    width = chance.randint(1, 12)
    series, _ = thinned(told, 5, width)
    expected = []
    for start in range(5, told[-1][0] + 1, width):
        run = [(n, said["x"]) for n, said in told if start <= n < start + width and "x" in said]
        if run:
            values = [value for _, value in run]
            expected.append((run[-1][0], pytest.approx(sum(values) / len(values)), min(values), max(values)))
    found = series.get("x")
    points = list(zip(found.steps, found.values, found.lows, found.highs, strict=True)) if found else []
    assert points == expected
