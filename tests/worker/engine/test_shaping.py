"""Penalties, biases and bans: against the plain loop they equal, against stock transformers, and without neighbours."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from core.specs.generation import SamplingSpec
from worker.engine.sampling import choose
from worker.engine.shaping import Draw, shaped

V = 23


def plainly(logits, draw):
    """The Semantics of shaped(), for one row, in Python numbers."""
    spec, counts = draw.sampling, Counter(draw.drawn)
    found = list(logits)
    for token in range(V):
        if token in draw.read or token in draw.drawn:
            by = spec.repetition_penalty
            found[token] = found[token] / by if found[token] > 0 else found[token] * by
        if counts[token]:
            found[token] -= spec.presence_penalty + counts[token] * spec.frequency_penalty
        for biased, by in spec.logit_bias:
            if biased == token:
                found[token] += by
        if draw.allowed is not None and not draw.allowed[token]:
            found[token] = -torch.inf
    return found


ids = st.lists(st.integers(-2, V - 1), max_size=9)
specs = st.builds(
    SamplingSpec,
    presence_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 1.1, -0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, V + 5), st.floats(-100, 100), max_size=4).map(lambda d: tuple(d.items())),
)
bans = st.none() | st.lists(st.booleans(), min_size=V, max_size=V).map(np.array)
draws = st.builds(
    Draw,
    sampling=specs,
    position=st.just(0),
    read=ids,
    drawn=st.lists(st.integers(0, V - 1), max_size=9),
    allowed=bans,
)


@settings(max_examples=200, deadline=None)
@given(asked=st.lists(draws, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_rows_shaped_together_equal_the_plain_loop_of_each(asked, seed):
    logits = torch.randn(len(asked), V, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits.clone()
    together = shaped(logits, asked)
    for row, draw in enumerate(asked):
        assert together[row].tolist() == pytest.approx(plainly(logits[row].tolist(), draw), abs=1e-4, rel=1e-5)
        assert torch.equal(together[row], shaped(logits[row : row + 1], [draw])[0])
    assert torch.equal(logits, before)


def test_a_neighbour_s_penalties_change_nothing_of_a_row_even_in_bf16():
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(3)).bfloat16()
    plain = Draw(SamplingSpec(seed=4), 0)
    other = Draw(SamplingSpec(seed=5, logit_bias=((1, 50.0),), frequency_penalty=1.0), 3, (), (1, 1, 2))
    assert choose(logits, [plain, other])[0] == choose(logits[:1], [plain])[0]
    # Negative control: the other row's wishes are granted, to that row.
    assert choose(logits, [plain, other])[1] == 1


def test_a_repetition_penalty_is_stock_transformers_own():
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(1))
    seen = [3, 3, 7, 11]
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen]), logits.clone())
    found = shaped(logits, [Draw(SamplingSpec(repetition_penalty=1.7), 1, seen[:3], seen[3:])])
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not torch.allclose(found, logits)


def test_min_p_keeps_what_stock_transformers_keeps():
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(2)) * 2
    kept = {i for i, x in enumerate(MinPLogitsWarper(0.2)(None, logits)[0].tolist()) if x > -torch.inf}
    drawn = {choose(logits, [Draw(SamplingSpec(min_p=0.2, seed=9), t)])[0] for t in range(800)}
    assert drawn == kept
    assert len(kept) < len({choose(logits, [Draw(SamplingSpec(seed=9), t)])[0] for t in range(800)})


def test_a_bias_of_minus_hundred_bans_and_one_of_hundred_commands():
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(6))
    favourite = int(logits.argmax())
    banned = Draw(SamplingSpec(temperature=0, logit_bias=((favourite, -100.0),)), 0)
    assert choose(logits, [banned])[0] != favourite
    commanded = Draw(SamplingSpec(seed=1, logit_bias=((5, 100.0),)), 0)
    assert choose(logits, [commanded]) == [5]


def test_what_is_not_allowed_is_never_drawn_however_the_rest_is_cut():
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(7)) * 4
    allowed = np.zeros(V, np.bool_)
    allowed[[2, 9]] = True
    for spec in (
        SamplingSpec(seed=1),
        SamplingSpec(top_k=5, seed=1),
        SamplingSpec(top_p=0.5, min_p=0.1),
        SamplingSpec(temperature=0),
    ):
        assert {choose(logits, [Draw(spec, t, allowed=allowed)])[0] for t in range(60)} <= {2, 9}
