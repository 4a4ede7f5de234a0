"""Laws of the scheduler, over arbitrary traffic."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.scheduler import Overloaded, Readiness, Row, Scheduler


def ready(_: str) -> Readiness:
    return Readiness.READY


@dataclass
class Traffic:
    """Runs a scheduler as the engine does, and remembers everything that it did."""

    scheduler: Scheduler
    wanted: dict[int, int]  # new tokens by key
    ran: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    drawn: Counter[int] = field(default_factory=Counter)
    order: list[int] = field(default_factory=list)

    def step(self, readiness=ready):
        self.order += self.scheduler.admit(readiness)
        chunks = self.scheduler.plan()
        for chunk in chunks:
            self.ran.setdefault(chunk.key, []).append((chunk.start, chunk.count))
            self.scheduler.ran(chunk)
            if not chunk.is_last:
                continue
            self.drawn[chunk.key] += 1
            if self.drawn[chunk.key] == self.wanted[chunk.key]:
                self.scheduler.drop(chunk.key)
            else:
                self.scheduler.grow(chunk.key)
        return chunks


requests = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(requests=requests, rows=st.integers(1, 5), slack=st.integers(0, 12))
def test_every_token_runs_once_in_order_within_the_budget(requests, rows, slack):
    scheduler = Scheduler(rows=rows, token_budget=rows + slack, max_waiting=len(requests))
    traffic = Traffic(scheduler, {key: new for key, (_, new) in enumerate(requests)})
    for key, (length, _) in enumerate(requests):
        scheduler.add(Row(key, length))
    for _ in range(sum(length + new for length, new in requests) + 1):
        chunks = traffic.step()
        assert sum(c.count for c in chunks) <= rows + slack
        assert scheduler.n_running <= rows
    assert scheduler.n_running == scheduler.n_waiting == 0
    assert traffic.order == sorted(traffic.order)
    for key, (length, new) in enumerate(requests):
        starts = [start for start, _ in traffic.ran[key]]
        ends = [start + count for start, count in traffic.ran[key]]
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == length + new - 1
        assert traffic.drawn[key] == new


@settings(max_examples=100, deadline=None)
@given(requests=requests, rows=st.integers(1, 5), slack=st.integers(0, 12))
def test_a_row_that_decodes_is_in_every_step(requests, rows, slack):
    scheduler = Scheduler(rows=rows, token_budget=rows + slack, max_waiting=len(requests))
    traffic = Traffic(scheduler, {key: new for key, (_, new) in enumerate(requests)})
    for key, (length, _) in enumerate(requests):
        scheduler.add(Row(key, length))
    decoding: set[int] = set()
    while scheduler.n_running or scheduler.n_waiting:
        chunks = traffic.step()
        assert decoding <= {c.key for c in chunks}
        decoding = {key for key in traffic.drawn if traffic.drawn[key] < traffic.wanted[key]}


@settings(max_examples=100, deadline=None)
@given(
    adapters=st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=12),
    resident=st.sets(st.sampled_from(["a", "b", "c"])),
    dropped=st.sets(st.integers(0, 11)),
)
def test_only_rows_with_a_resident_adapter_are_admitted_and_dropped_ones_never(adapters, resident, dropped):
    scheduler = Scheduler(rows=4, token_budget=8, max_waiting=12)
    for key, adapter in enumerate(adapters):
        scheduler.add(Row(key, 1, adapter))
    for key in dropped:
        scheduler.drop(key)
    admitted = scheduler.admit(lambda a: Readiness.READY if a in resident else Readiness.LOADING)
    may = [k for k, a in enumerate(adapters) if k not in dropped and (a is None or a in resident)]
    assert admitted == may[:4]
    assert [c.key for c in scheduler.plan()] == may[:4]


def test_behind_an_adapter_without_memory_everybody_waits():
    scheduler = Scheduler(rows=4, token_budget=8, max_waiting=8)
    for key, adapter in enumerate(["resident", "blocked", "resident", None]):
        scheduler.add(Row(key, 1, adapter))
    states = {"resident": Readiness.READY, "blocked": Readiness.BLOCKED}
    assert scheduler.admit(states.__getitem__) == [0]
    # Negative control: the same adapter merely loading lets them pass.
    states["blocked"] = Readiness.LOADING
    assert scheduler.admit(states.__getitem__) == [2, 3]


def test_a_full_queue_refuses_and_a_dropped_row_makes_room():
    scheduler = Scheduler(rows=1, token_budget=4, max_waiting=2)
    scheduler.add(Row(0, 1))
    scheduler.add(Row(1, 1))
    with pytest.raises(Overloaded):
        scheduler.add(Row(2, 1))
    scheduler.drop(0)
    scheduler.add(Row(2, 1))
    assert [row.key for row in scheduler.waiting()] == [1, 2]


def test_a_row_dropped_while_running_leaves_its_place_to_the_next_plan():
    scheduler = Scheduler(rows=1, token_budget=4, max_waiting=2)
    scheduler.add(Row(0, 9))
    scheduler.add(Row(1, 2))
    assert scheduler.admit(ready) == [0]
    chunk = scheduler.plan()[0]
    assert (chunk.count, chunk.is_last) == (4, False)
    scheduler.drop(0)
    scheduler.ran(chunk)  # the forward that was under way ends without harm
    assert scheduler.admit(ready) == [1]
    assert [(c.key, c.start, c.count, c.is_last) for c in scheduler.plan()] == [(1, 0, 2, True)]


def test_a_long_prompt_runs_in_chunks_beside_rows_that_decode():
    scheduler = Scheduler(rows=2, token_budget=4, max_waiting=2)
    traffic = Traffic(scheduler, {0: 99, 1: 1})
    scheduler.add(Row(0, 1))
    traffic.step()
    scheduler.add(Row(1, 7))
    steps = [[(c.key, c.count) for c in traffic.step()] for _ in range(3)]
    assert steps == [[(0, 1), (1, 3)], [(0, 1), (1, 3)], [(0, 1), (1, 1)]]


def test_senseless_rows_and_budgets_are_refused():
    with pytest.raises(ValueError, match="cannot decode 4 rows"):
        Scheduler(rows=4, token_budget=3, max_waiting=1)
    scheduler = Scheduler(rows=1, token_budget=1, max_waiting=3)
    scheduler.add(Row(0, 1))
    with pytest.raises(ValueError, match="already known"):
        scheduler.add(Row(0, 1))
    with pytest.raises(ValueError, match="no token"):
        scheduler.add(Row(1, 0))
