"""An ensemble in training: each member learns, in company, what it would learn alone."""

import pytest
import torch
from token_rows import PLAIN, random_corpus
from torch import nn

from core import trainer
from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.effects import Ensemble, SoftPrompt
from core.optimisers import Group
from core.pieces import Piece, weights_of
from core.run import Run
from core.specs.method import PromptTuningSpec
from core.specs.training import TrainSpec
from core.trainer import Step, evaluate, train


class Prompts(nn.Module):
    """One prompt, or several as an ensemble."""

    base_precision = "bf16"

    def __init__(self, *prompts):
        super().__init__()
        self.prompts = nn.ParameterList(prompt.clone() for prompt in prompts)

    def effect(self):
        members = tuple(SoftPrompt(prompt) for prompt in self.prompts)
        return Ensemble(members) if len(members) > 1 else members[0]

    def groups(self):
        return [Group([prompt]) for prompt in self.prompts]

    def penalty(self):
        return torch.zeros(())

    def after_step(self, step, of):
        pass


STARTS = [torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * 0.3 for seed in (1, 2)]


def run_of(*prompts, **changes):
    """Rows of a corpus with two virtual tokens in front; clipped so late that no member feels another."""
    spec = PromptTuningSpec(num_virtual_tokens=2, ensemble_size=len(prompts))
    corpus = Corpus.of(
        TokenRow(
            row.line,
            torch.cat([torch.tensor([-1, -2], dtype=torch.int32), torch.from_numpy(row.ids)]).numpy(),
            torch.cat([torch.tensor([False, False]), torch.from_numpy(row.learned)]).numpy(),
        )
        for row in random_corpus(10)
    )
    return Run(TrainSpec(method=spec, **(PLAIN | {"max_grad_norm": 1e9} | changes)), Prompts(*prompts), corpus)


def learned(model, *runs):
    """Each run's prompts at its end, and what its steps reported."""
    losses = {run: [] for run in runs}
    for event in train(model, list(runs)):
        assert isinstance(event, Step), event
        losses[event.run].append(event.loss)
    return [([p.detach() for p in run.method.prompts], losses[run]) for run in runs]


@pytest.mark.parametrize("tokens_per_batch", [24, 4096])
def test_members_have_in_one_batch_the_gradients_that_they_have_alone(llama, tokens_per_batch):
    both = run_of(*STARTS, tokens_per_batch=tokens_per_batch)
    pieces = [Piece(both, place, both.corpus.rows_of(place)) for place in both.next_rows()]
    trainer._learn(llama, pieces, weights_of(pieces))
    for start, together in zip(STARTS, both.method.prompts, strict=True):
        one = run_of(start)
        own = [Piece(one, p.place, p.rows) for p in pieces]
        trainer._learn(llama, own, weights_of(own))
        assert torch.allclose(together.grad, one.method.prompts[0].grad, atol=1e-7, rtol=1e-4)
        assert together.grad.abs().max() > 1e-4
    # Negative control: they are not alike.
    assert not torch.allclose(both.method.prompts[0].grad, both.method.prompts[1].grad, rtol=0.1)


def test_members_learn_together_what_each_learns_alone(llama):
    (ensemble,) = learned(llama, run_of(*STARTS))
    alone = [learned(llama, run_of(start))[0] for start in STARTS]
    for together, (own, _) in zip(ensemble[0], alone, strict=True):
        assert (together - own[0]).abs().max() < 0.01 * PLAIN["learning_rate"]
    means = [(a + b) / 2 for a, b in zip(alone[0][1], alone[1][1], strict=True)]
    assert ensemble[1] == pytest.approx(means, abs=1e-5)


def test_members_that_share_one_row_would_learn_something_else(llama, monkeypatch):
    """Negative control: rows that go forward for the first member only."""
    monkeypatch.setattr("core.pieces.members_of", lambda effect: effect.members[:1])
    (ensemble,) = learned(llama, run_of(*STARTS))
    assert torch.equal(ensemble[0][1], STARTS[1])


def test_an_ensemble_beside_another_run_changes_nothing_for_either(llama):
    (together, other), (alone,), (other_alone,) = (
        learned(llama, run_of(*STARTS), run_of(STARTS[1], seed=5)),
        learned(llama, run_of(*STARTS)),
        learned(llama, run_of(STARTS[1], seed=5)),
    )
    for here, there in zip([*together[0], *other[0]], [*alone[0], *other_alone[0]], strict=True):
        assert (here - there).abs().max() < 0.01 * PLAIN["learning_rate"]


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 4096])
def test_a_validation_of_an_ensemble_is_the_mean_of_its_members(llama, tokens_per_batch):
    both = run_of(*STARTS)
    *_, found = evaluate(llama, both.method, both.corpus, tokens_per_batch)
    singles = []
    for start in STARTS:
        *_, score = evaluate(llama, Prompts(start), both.corpus, 4096)
        singles.append(score)
    assert found.count == sum(score.count for score in singles)
    assert found.correct == sum(score.correct for score in singles)
    assert found.loss == pytest.approx(sum(score.loss for score in singles) / 2, abs=1e-6)
    assert singles[0].loss != pytest.approx(singles[1].loss, abs=1e-3)


def test_a_validation_takes_no_more_tokens_at_a_time_than_it_is_given(llama, monkeypatch):
    seen = []
    plain = llama.__class__.forward
    monkeypatch.setattr(
        llama.__class__, "forward", lambda model, rows: seen.append(len(rows.ids)) or plain(model, rows)
    )
    both = run_of(*STARTS)
    list(evaluate(llama, both.method, both.corpus, 60))
    assert max(seen) <= 60
