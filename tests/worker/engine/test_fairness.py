"""Laws of turns: tenants get their parts, classes theirs, nobody starves, nobody saves credit."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.fairness import NAMES, Ledger
from worker.engine.scheduler import DRAWN, PROMPT, SHARE, Overloaded, Readiness, Row, Scheduler

LONGEST, MOST_NEW = 30, 6  # of a row here


def ready(_: str) -> Readiness:
    return Readiness.READY


class Market:
    """Rows of several tenants through one scheduler, and what each was served, counted here and not there."""

    def __init__(self, rows, *, budget=None, max_waiting=10_000, one_for_all=False):
        self.scheduler = Scheduler(rows=rows, token_budget=budget or 4 * rows, max_waiting=max_waiting)
        self.keys = itertools.count()
        self.owner, self.new, self.served = {}, {}, Counter()
        self.order = []
        self.one_for_all = one_for_all

    def ask(self, tenant, length=3, new=2, **row):
        key = next(self.keys)
        self.owner[key], self.new[key] = (tenant, row.get("priority", 0)), new
        self.scheduler.add(Row(key, length, tenant="" if self.one_for_all else tenant, **row))
        return key

    def step(self, readiness=ready):
        waiting = {row.key: row for row in self.scheduler.waiting()}
        for key in self.scheduler.admit(readiness):
            self.order.append(self.owner[key])
            self.served[self.owner[key]] += waiting[key].length * PROMPT
        chunks = self.scheduler.plan()
        for chunk in chunks:
            self.scheduler.ran(chunk)
            if chunk.is_last:
                self.served[self.owner[chunk.key]] += DRAWN
                self.new[chunk.key] -= 1
                if self.new[chunk.key]:
                    self.scheduler.grow(chunk.key)
                else:
                    self.scheduler.drop(chunk.key)
        return chunks


asked = st.lists(st.tuples(st.integers(1, LONGEST), st.integers(1, MOST_NEW)), min_size=1, max_size=25)


def furthest_apart(market, weights, asked_by):
    """How far the weighted service of two tenants lies apart at most, while both have rows waiting."""
    for tenant, rows in asked_by.items():
        for length, new in rows:
            market.ask(tenant, length, new, weight=weights[tenant])
    apart = 0.0
    while {market.owner[row.key][0] for row in market.scheduler.waiting()} == set(asked_by):
        market.step()
        one, other = (market.served[tenant, 0] / weights[tenant] for tenant in asked_by)
        apart = max(apart, abs(one - other))
    return apart


def bound(rows, weights):
    """Sheng et al. 2024, theorem 4.4: twice the larger of what one prompt costs and what all rows may draw at once."""
    return 2 * max(LONGEST * PROMPT, rows * MOST_NEW * DRAWN) / min(weights.values())


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    weights=st.tuples(st.sampled_from([1.0, 2.0, 5.0]), st.sampled_from([1.0, 3.0])),
    one=asked,
    other=asked,
)
def test_two_tenants_with_rows_waiting_are_served_in_proportion_to_their_weights(rows, weights, one, other):
    of = dict(zip("ab", weights, strict=True))
    assert furthest_apart(Market(rows), of, {"a": one, "b": other}) <= bound(rows, of)


def test_without_tenants_who_came_first_takes_all():
    """Negative control of the law above: rows in order of arrival alone go far past the bound."""
    of, many = {"a": 1.0, "b": 1.0}, [(LONGEST, MOST_NEW)] * 20
    apart = furthest_apart(Market(2, one_for_all=True), of, {"a": many, "b": many})
    assert apart > 4 * bound(2, of)
    assert furthest_apart(Market(2), of, {"a": many, "b": many}) <= bound(2, of)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 4),
    slack=st.integers(0, 9),
    traffic=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(-1, 1),
            st.integers(1, LONGEST),
            st.integers(1, MOST_NEW),
            st.sampled_from([None, "cold", "warm"]),
        ),
        min_size=1,
        max_size=30,
    ),
)
def test_whatever_comes_the_budget_holds_and_every_row_ends(rows, slack, traffic):
    market = Market(rows, budget=rows + slack)
    for tenant, priority, length, new, adapter in traffic:
        market.ask(tenant, length, new, priority=priority, adapter=adapter)
    work = sum(length + new for _, _, length, new, _ in traffic)
    for turn in range(2 * work + 8):
        states = {"cold": Readiness.LOADING if turn < work else Readiness.READY, "warm": Readiness.READY}
        assert sum(chunk.count for chunk in market.step(states.__getitem__)) <= rows + slack
        assert market.scheduler.n_running <= rows
    assert market.scheduler.n_waiting == market.scheduler.n_running == 0
    assert not any(market.new.values())


def test_a_low_class_is_served_its_share_and_does_not_starve():
    market = Market(1)
    for _ in range(300):
        market.ask("flex", priority=-1)
        market.ask("default", priority=0)
    for _ in range(400):
        market.step()
    low, high = market.served["flex", -1], market.served["default", 0]
    assert high / low == pytest.approx(SHARE, rel=0.1)


def test_a_row_of_a_higher_class_goes_before_all_that_wait_below_it():
    market = Market(1)
    for _ in range(20):
        market.ask("flood", priority=0)
    market.step()
    market.ask("urgent", priority=1)
    while ("urgent", 1) not in market.order:
        market.step()
    assert market.order.index(("urgent", 1)) <= 2


def test_a_tenant_that_comes_late_is_next_and_owes_and_owns_nothing_of_before():
    market = Market(1)
    for _ in range(40):
        market.ask("early")
    for _ in range(30):
        market.step()
    before = market.served["early", 0]
    for _ in range(40):
        market.ask("late")
    for _ in range(30):
        market.step()
    gained = market.served["early", 0] - before
    assert market.order[-12:].count(("late", 0)) == 6
    assert abs(market.served["late", 0] - gained) <= bound(1, {"": 1.0})


def test_a_tenant_that_comes_while_its_class_does_not_wait_gets_no_credit_of_another_class():
    """The last to leave the queue was of another class, which is served less: that is no place to begin from."""
    market = Market(2)
    for _ in range(60):
        market.ask("flex", priority=-1)
    for _ in range(400):
        market.ask("early")
        market.step()
    while market.scheduler.n_waiting:
        market.step()
    assert market.order[-1] == ("flex", -1)
    market.ask("flex", new=40, priority=-1)  # never at rest, so that counters stand
    for _ in range(40):
        market.ask("late")
    for _ in range(40):
        market.ask("early")
    first = len(market.order)
    for _ in range(60):
        market.step()
    assert Counter(market.order[first:])["early", 0] >= 5


def test_among_one_tenants_rows_the_order_is_that_of_arrival():
    scheduler = Scheduler(rows=2, token_budget=8, max_waiting=9)
    for key, length in enumerate([9, 1, 5, 2]):
        scheduler.add(Row(key, length, tenant="a"))
    assert [row.key for row in scheduler.queue()] == [0, 1, 2, 3]
    assert scheduler.admit(ready) == [0, 1]


@settings(max_examples=100, deadline=None)
@given(deadlines=st.lists(st.floats(0, 20), min_size=1, max_size=12), rows=st.integers(1, 3))
def test_no_row_runs_past_its_deadline(deadlines, rows):
    market = Market(rows)
    keys = {market.ask("a", 5, 4, deadline=at): at for at in deadlines}
    for now in range(30):
        for key in market.scheduler.expired(float(now)):
            market.scheduler.drop(key)
        assert all(keys[chunk.key] > now for chunk in market.step())
    assert market.scheduler.n_waiting == market.scheduler.n_running == 0


def test_of_a_full_queue_the_newest_row_of_whoever_has_most_gives_way():
    scheduler = Scheduler(rows=1, token_budget=4, max_waiting=4)
    for key in range(4):
        scheduler.add(Row(key, 1, tenant="hog"))
    assert scheduler.add(Row(4, 1, tenant="small")) == 3
    assert scheduler.add(Row(5, 1, tenant="small")) == 2
    with pytest.raises(Overloaded):
        scheduler.add(Row(6, 1, tenant="small"))  # two and two: equal parts
    with pytest.raises(Overloaded):
        scheduler.add(Row(7, 1, tenant="hog"))
    assert scheduler.add(Row(8, 1, tenant="third")) in {1, 5}
    assert scheduler.n_waiting == 4


def test_of_a_full_queue_a_lower_class_gives_way_and_a_higher_never():
    scheduler = Scheduler(rows=1, token_budget=4, max_waiting=2)
    scheduler.add(Row(0, 1, tenant="a", priority=-1))
    scheduler.add(Row(1, 1, tenant="a", priority=0))
    assert scheduler.add(Row(2, 1, tenant="a", priority=0)) == 0
    with pytest.raises(Overloaded):
        scheduler.add(Row(3, 1, tenant="b", priority=-1))


def test_what_need_not_run_is_not_charged():
    scheduler = Scheduler(rows=1, token_budget=40, max_waiting=9)
    for key, tenant in enumerate(["a", "a", "b"]):
        scheduler.add(Row(key, 30, tenant=tenant))
    assert scheduler.admit(ready) == [0]
    scheduler.reuse(0, 29)
    assert [(c.start, c.count, c.is_last) for c in scheduler.plan()] == [(29, 1, True)]
    assert scheduler._tenants[0].of((0, "a")) == 1.0
    with pytest.raises(ValueError, match="1 tokens to run: 1 cannot"):
        scheduler.reuse(0, 1)


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        Scheduler(rows=1, token_budget=4, max_waiting=1).add(Row(0, 1, weight=0.0))


def test_counters_are_bounded_and_those_that_owe_are_kept():
    ledger = Ledger()
    for name in range(2 * NAMES):
        ledger.join(name, ())
        ledger.charge(name, 1.0 + (name == 5))
        ledger.forget({name}.__contains__)
    assert len(ledger) == NAMES
    assert 5 in ledger._counters
