"""Tenants, classes and deadlines in an engine that runs: who goes first, who gives way, who is told what."""

import pytest

from core.specs.generation import QueueSpec
from worker.engine.pace import LONGEST_S, SHORTEST_S, Pace
from worker.engine.scheduler import Overloaded


def ask(kitchen, tenant, **asked):
    queue = QueueSpec(tenant=tenant, **{k: asked.pop(k) for k in ("weight", "priority", "deadline_s") if k in asked})
    return kitchen.ask(queue=queue, **{"max_tokens": 3} | asked)


def order_of_ends(kitchen, answers):
    """The names of answers in the order in which they end."""
    ended = []
    while not kitchen.engine.is_idle:
        kitchen.engine.step() or kitchen.engine._sleep()
        ended += [name for name, answer in answers if answer.frames and answer.fin and (name, answer) not in ended]
        answers = [(name, answer) for name, answer in answers if not (answer.frames and answer.fin)]
    return ended


def test_a_tenant_with_few_requests_does_not_wait_for_one_with_many(new_kitchen):
    kitchen = new_kitchen(rows=1, max_waiting=50)
    answers = [("many", ask(kitchen, "many")) for _ in range(12)]
    answers += [("few", ask(kitchen, "few")) for _ in range(2)]
    ended = order_of_ends(kitchen, answers)
    assert len(ended) == 14
    assert max(i for i, name in enumerate(ended) if name == "few") <= 4


def test_without_tenants_the_few_wait_for_the_many(new_kitchen):
    """Negative control of the law above."""
    kitchen = new_kitchen(rows=1, max_waiting=50)
    answers = [("many", ask(kitchen, "")) for _ in range(12)]
    answers += [("few", ask(kitchen, "")) for _ in range(2)]
    assert order_of_ends(kitchen, answers)[-2:] == ["few", "few"]


def test_whoever_lets_others_go_first_is_answered_after_them(new_kitchen):
    kitchen = new_kitchen(rows=1, max_waiting=50)
    answers = [("flex", ask(kitchen, "t", priority=-1)) for _ in range(3)]
    answers += [("default", ask(kitchen, "t")) for _ in range(3)]
    ended = order_of_ends(kitchen, answers)
    assert ended[:3].count("default") >= 2


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_row_past_its_deadline_ends_and_takes_part_in_no_further_step(new_kitchen, has_begun):
    now = [0.0]
    kitchen = new_kitchen(rows=1, clock=lambda: now[0])
    late = [ask(kitchen, "t", max_tokens=30, deadline_s=5.0) for _ in range(1 if has_begun else 2)][-1]
    other = ask(kitchen, "t", max_tokens=3, deadline_s=50.0)
    for _ in range(3):
        kitchen.engine.step()
    said = len(late.frames)
    assert bool(said) == has_begun
    now[0] = 5.0
    kitchen.run()
    assert len(late.frames) == said + 1
    assert (late.error.code, late.error.retryable) == ("deadline_exceeded", False)
    assert other.fin == "length"
    assert kitchen.engine._cache._taken == [False]


def test_of_a_full_engine_whoever_has_most_waiting_gives_way_and_is_told_to_try_elsewhere(new_kitchen):
    kitchen = new_kitchen(rows=1, max_waiting=3)
    hog = [ask(kitchen, "hog") for _ in range(3)]
    small = ask(kitchen, "small")
    assert (hog[2].error.code, hog[2].error.retryable) == ("engine_overloaded", True)
    with pytest.raises(Overloaded):
        ask(kitchen, "hog")
    kitchen.run()
    assert [answer.fin for answer in (hog[0], hog[1], small)] == ["length"] * 3


def test_the_wait_that_is_told_is_that_of_the_rows_that_ended_lately():
    pace = Pace()
    assert pace.wait_s(9) == SHORTEST_S
    for now in range(0, 40, 2):
        pace.ended(float(now))
    assert pace.wait_s(3) == pytest.approx(8.0)
    pace.rest()
    pace.ended(1000.0)  # the time without work does not count
    assert pace.wait_s(3) == pytest.approx(8.0)
    assert pace.wait_s(1000) == LONGEST_S


def test_an_engine_tells_its_wait_in_its_status(new_kitchen):
    now = [0.0]
    kitchen = new_kitchen(rows=1, clock=lambda: now[0], max_waiting=20)
    rows = [ask(kitchen, "t", max_tokens=1) for _ in range(10)]
    for _ in range(4):
        now[0] += 3.0
        kitchen.engine.step()
    assert sum(bool(row.frames) for row in rows) == 4
    assert kitchen.engine.wait_s() == kitchen.engine.status()["wait_s"] == pytest.approx(21.0)
