"""Choosing the next token: against the plain loop that it equals, and against the laws of replay."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.specs.generation import SamplingSpec
from worker.engine import sampling
from worker.engine.sampling import Draw, choose, logprobs, uniform


def plainly(logits, draw):
    """The Semantics of choose(), for one row, in Python numbers."""
    spec = draw.sampling
    if spec.temperature < sampling.GREEDY_BELOW:
        return max(range(len(logits)), key=lambda i: (logits[i], -i))
    weights = ((torch.tensor(logits) - max(logits)) / spec.temperature).tolist()
    if spec.top_k:
        floor = sorted(weights, reverse=True)[: spec.top_k][-1]
        weights = [w if w >= floor else -torch.inf for w in weights]
    mass = torch.tensor(weights).softmax(-1).tolist()
    if spec.top_p < 1:
        total, floor = 0.0, 0.0
        for m in sorted(mass, reverse=True):
            if total < spec.top_p:
                floor = m
            total += m
        mass = [m if m >= floor else 0.0 for m in mass]
    target, reached = uniform(spec.seed, draw.position) * sum(mass), 0.0
    for i, m in enumerate(mass):
        reached += m
        if reached > target:
            return i
    raise AssertionError("a number below 1 reaches some token")


specs = st.builds(
    SamplingSpec,
    temperature=st.sampled_from([0.0, 1e-300, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 999]),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=150, deadline=None)
@given(specs=st.lists(specs, min_size=1, max_size=6), seed=st.integers(0, 99), position=st.integers(0, 3000))
def test_rows_chosen_together_equal_the_plain_loop_of_each(specs, seed, position):
    logits = torch.randn(len(specs), 37, generator=torch.Generator().manual_seed(seed)) * 3
    draws = [Draw(s, position + i) for i, s in enumerate(specs)]
    assert choose(logits, draws) == [plainly(row, d) for row, d in zip(logits.tolist(), draws, strict=True)]


def test_a_row_draws_the_same_in_company_as_alone():
    logits = torch.randn(8, 2000, generator=torch.Generator().manual_seed(1))
    draws = [
        Draw(SamplingSpec(temperature=1.0, top_p=0.9 if i % 2 else 1.0, top_k=i * 10, seed=i), i) for i in range(8)
    ]
    together = choose(logits, draws)
    assert together == [choose(logits[i : i + 1], draws[i : i + 1])[0] for i in range(8)]
    assert together != [choose(logits[i : i + 1], [Draw(draws[i].sampling, 99)])[0] for i in range(8)]


def test_equal_logits_are_kept_together_so_that_their_order_decides_nothing():
    logits = torch.tensor([[1.0, 1.0, 1.0, -9.0]])
    seen = Counter(choose(logits, [Draw(SamplingSpec(top_k=1, seed=7), t)])[0] for t in range(200))
    assert set(seen) == {0, 1, 2}
    seen = Counter(choose(logits, [Draw(SamplingSpec(top_p=0.1, seed=7), t)])[0] for t in range(200))
    assert set(seen) == {0, 1, 2}
    assert choose(logits, [Draw(SamplingSpec(temperature=0), 0)]) == [0]


def test_a_nucleus_wider_than_the_candidates_is_found_all_the_same(monkeypatch):
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(2)) * 0.1
    draws = [Draw(SamplingSpec(top_p=0.95, seed=3), 0), Draw(SamplingSpec(top_p=0.01, seed=3), 1)]
    whole = choose(logits, draws)
    monkeypatch.setattr(sampling, "CANDIDATES", 4)
    assert choose(logits, draws) == whole


def test_frequencies_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    n = 4000
    seen = Counter(choose(logits, [Draw(SamplingSpec(temperature=0.5, seed=11), t)])[0] for t in range(n))
    wanted = (logits[0] / 0.5).softmax(-1)
    assert [seen[i] / n for i in range(4)] == pytest.approx(wanted.tolist(), abs=0.03)
    assert seen[3] == 0


def test_numbers_are_named_by_seed_and_position_on_every_machine():
    assert [uniform(0, 0), uniform(0, 1), uniform(2**63 - 1, 7)] == [
        0.0564663990004608,
        0.44008326622012284,
        0.6488729395303772,
    ]
    numbers = [uniform(5, t) for t in range(5000)]
    assert 0 <= min(numbers) < max(numbers) < 1
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
    assert uniform(1, 2) != uniform(2, 1)


def test_a_logprob_is_of_what_was_drawn_from():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for spec, kept in (
        (SamplingSpec(temperature=0.0), [2.0, 1.0, 0.0, -1.0]),
        (SamplingSpec(temperature=0.5), [4.0, 2.0, 0.0, -2.0]),
        (SamplingSpec(temperature=0.5, top_k=2), [4.0, 2.0]),
        (SamplingSpec(temperature=1.0, top_p=0.8), [2.0, 1.0]),
    ):
        for token, weight in enumerate(kept):
            (found,) = logprobs(logits, [Draw(spec, 0)], [token])
            assert found == pytest.approx(weight - float(torch.tensor(kept).logsumexp(0)), abs=1e-6)
