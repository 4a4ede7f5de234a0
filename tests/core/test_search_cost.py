"""What a search of the learning rate adds to an estimate, and what pairs do."""

from itertools import pairwise

import numpy as np
import pytest
from test_estimate import AMOUNT, LARGEST, SMOL, spec_of

from core.data.batches import cuts, largest, order
from core.estimate import estimate, memory_range
from core.specs.estimate import Device, ScheduleSpec
from core.specs.rate_search import Candidate, FoundRate, RateSearch, search_around, work
from core.specs.training import DPO, LEARNING_RATES


def searching(**training):
    return spec_of(learning_rate="search", **training)


def test_a_search_tries_rates_about_the_methods_own_each_twice_the_one_before():
    spec = searching()
    rates = spec.rate_search.rates
    assert spec.learning_rate == rates[3] == LEARNING_RATES["lora"]
    assert all(high == pytest.approx(2 * low) for low, high in pairwise(rates))
    assert spec.is_searching
    assert not spec_of().is_searching


@pytest.mark.parametrize(("rate", "low", "high"), [(8.0, 1.0, 10.0), (2e-7, 1e-7, 1.6e-6)])
def test_no_rate_is_tried_that_nobody_might_name(rate, low, high):
    rates = search_around(rate, steps=100, batch_size=8).rates
    assert (rates[0], rates[-1]) == (low, pytest.approx(high))
    assert len(set(rates)) == len(rates)


@pytest.mark.parametrize(("steps", "rungs"), [(3, (2, 4, 8)), (189, (9, 19, 38)), (100_000, (16, 32, 64))])
def test_a_rung_is_a_share_of_the_run_within_bounds(steps, rungs):
    assert search_around(5e-4, steps=steps, batch_size=8).rungs == rungs


def test_the_steps_of_a_search_are_those_of_a_plain_loop_over_its_rungs():
    search = RateSearch(rates=tuple(range(1, 8)), rungs=(3, 6, 12), judged_rows=9)
    standing, steps, judged, at = list(search.rates), 0, 0, 0
    for rung in search.rungs:
        steps += len(standing) * (rung - at)
        judged += len(standing)
        standing, at = standing[: -(-len(standing) // 2)], rung
    assert (search.steps, search.judgements, len(standing)) == (steps, judged, 1)


def test_a_search_is_in_the_estimate_and_gone_from_it_once_the_rate_is_found():
    spec, plain = searching(), estimate(SMOL, spec_of(), AMOUNT, None, tokens_per_s=1000.0)
    told = estimate(SMOL, spec, AMOUNT, None, tokens_per_s=1000.0)
    cost = told.rate_search
    assert (cost.candidates, cost.steps) == (7, spec.rate_search.steps)
    assert cost.tokens == spec.rate_search.steps * 8 * 200
    assert cost.share == pytest.approx(work(cost.tokens, cost.judged_tokens) / told.tokens)
    assert told.seconds == pytest.approx(plain.seconds + cost.seconds, abs=0.2)
    assert told.memory.adapter == pytest.approx(7 * plain.memory.adapter, abs=7)
    assert (told.tokens, plain.rate_search) == (plain.tokens, None)
    candidates = (Candidate(rate=1e-3, losses=(1.0,)),)
    found = FoundRate(
        rate=1e-3, judged_on="held_out_rows", judged_rows=9, candidates=candidates, tokens=1, judged_tokens=1, share=0.1
    )
    done = spec.with_rate(found)
    assert (done.learning_rate, done.is_searching) == (1e-3, False)
    assert estimate(SMOL, done, AMOUNT, None, tokens_per_s=1000.0).memory == plain.memory


def test_the_candidates_fill_a_forward_that_one_run_would_not():
    small = AMOUNT.model_copy(update={"largest": LARGEST.model_copy(update={"tokens": 256, "learned": 140})})
    few, many = (estimate(SMOL, spec, small, None).memory.activations for spec in (spec_of(), searching()))
    assert many > 6 * few
    full = [estimate(SMOL, spec, AMOUNT, None).memory.activations for spec in (spec_of(), searching())]
    assert full[0] == full[1]


def test_where_a_search_alone_is_too_much_no_search_is_the_advice():
    plain = estimate(SMOL, spec_of({"type": "lora", "r": 256}), AMOUNT, None).memory
    device = Device(memory_bytes=memory_range(plain.total)[1])
    asked = spec_of({"type": "lora", "r": 256}, learning_rate="search")
    advised = estimate(SMOL, asked, AMOUNT, device).advice
    assert (advised[0].param, advised[0].value) == ("training.learning_rate", "auto")


def test_only_what_cannot_fit_even_at_the_least_is_refused_and_what_may_not_is_told():
    total = estimate(SMOL, spec_of(), AMOUNT, None).memory.total
    least, most = memory_range(total)
    assert least < total < most
    told = [
        estimate(SMOL, spec_of(), AMOUNT, Device(memory_bytes=there)) for there in (least - 1, least, most - 1, most)
    ]
    assert [one.fits for one in told] == [False, True, True, True]
    assert [bool(one.warning) for one in told] == [False, True, True, False]
    assert told[1].memory_range == (least, most)


def test_a_pair_goes_forward_as_one_that_counts_twice():
    lengths = np.array([30, 50, 20, 20, 40, 60, 10, 90], np.int64)
    learned = lengths // 2
    schedule = ScheduleSpec(n_epochs=2, batch_size=2, tokens_per_batch=200, seed=3, is_of_pairs=True)
    best = 0
    for epoch in range(2):
        for start in (0, 2):
            turn = order(4, 3, epoch)[start : start + 2]
            pairs = [int(lengths[2 * p] + lengths[2 * p + 1]) for p in turn]
            first = 0
            for count in cuts([2 * tokens for tokens in pairs], 200):
                best = max(best, sum(pairs[first : first + count]))
                first += count
    found = largest(lengths, learned, schedule)
    assert (found.tokens, found.longest_row) == (best, 90)
    assert largest(lengths, learned, schedule.model_copy(update={"is_of_pairs": False})).tokens != best  # a control


def test_pairs_take_half_as_long_again_and_no_more_memory():
    plain, pairs = spec_of(), spec_of().model_copy(update={"dpo": DPO()})
    apart, together = (estimate(SMOL, spec, AMOUNT, None) for spec in (plain, pairs))
    assert 1.3 < together.seconds / apart.seconds < 1.6
    assert together.memory == apart.memory
