"""NEFTune: how large the noise is, where it falls, and that neither company, cutting nor a stop changes it."""

import math

import pytest
import torch
from token_rows import facts_of_routed, new_run
from virtual_runs import WORDS, make, opened, row_in

from core.embedding import embedded
from core.model import RoutedModel, Rows
from core.routing import Routing, dropout_key
from core.trainer import evaluate, train

KEYS = [dropout_key(1, 2, row) for row in range(3)]
STARTS = (0, 5, 5 + 11, 5 + 11 + 3)


def weights(run):
    return [parameter.detach().clone() for parameter in run.method.parameters()]


def finish(model, *runs):
    return [(event.run is runs[0], event.loss) for event in train(model, list(runs))]


def test_noise_is_uniform_within_alpha_over_the_root_of_the_rows_size():
    words = torch.randn(STARTS[-1], 64, generator=torch.Generator().manual_seed(0))
    routing = Routing.of_rows([None] * 3, dropout_keys=KEYS, noise_alphas=[5.0, 0.0, 2.0])
    noise = routing.noised(words, STARTS) - words
    for row, alpha in enumerate([5.0, 0.0, 2.0]):
        mine = noise[STARTS[row] : STARTS[row + 1]]
        reach = alpha / math.sqrt(mine.numel())
        assert mine.abs().max() <= reach + 1e-6
        assert mine.std().item() == pytest.approx(reach / math.sqrt(3), rel=0.1)
        # The paper's own measure: the expected length of a row's noise is alpha / sqrt(3).
        assert mine.norm().item() == pytest.approx(alpha / math.sqrt(3), rel=0.1)


def test_a_row_has_the_same_noise_in_company_as_alone():
    words = torch.randn(STARTS[-1], 64, generator=torch.Generator().manual_seed(0))
    together = Routing.of_rows([None] * 3, dropout_keys=KEYS, noise_alphas=[5.0] * 3).noised(words, STARTS)
    alone = Routing.of_rows([None], dropout_keys=KEYS[1:2], noise_alphas=[5.0]).noised(words[5:16], (0, 11))
    assert torch.equal(together[5:16], alone)
    other = Routing.of_rows([None], dropout_keys=KEYS[:1], noise_alphas=[5.0]).noised(words[5:16], (0, 11))
    assert not torch.equal(other, alone)


@pytest.mark.parametrize("kind", ["prompt", "p mlp"])
def test_virtual_tokens_have_no_noise(kind, new_base):
    model, facts = opened(new_base())
    effect = make(kind, facts).effect()
    ids = row_in(effect, WORDS)
    found = []
    for alphas in ([5.0], []):
        routing = Routing.of_rows([effect], dropout_keys=KEYS[:1], noise_alphas=alphas)
        rows = Rows.of([ids])
        found.append(embedded(model.base, model.shape.table[0], rows.ids, rows.starts, routing))
    differs = (found[0] != found[1]).any(1).tolist()
    assert differs == [index >= 0 for index in ids]


def test_noise_changes_training_and_no_evaluation(llama):
    noisy, quiet = new_run(llama, neftune_alpha=5.0), new_run(llama)
    scores = [list(evaluate(llama, run.method, run.corpus, 4096))[-1] for run in (noisy, quiet)]
    assert scores[0] == scores[1]
    assert finish(llama, noisy) != finish(llama, quiet)


@pytest.mark.parametrize("tokens_per_batch", [1, 40])
def test_the_cutting_changes_no_noise(llama, tokens_per_batch):
    whole, cut = new_run(llama, neftune_alpha=5.0), new_run(llama, neftune_alpha=5.0, tokens_per_batch=tokens_per_batch)
    losses = [[loss for _, loss in finish(llama, run)] for run in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_runs_in_step_have_the_noise_they_have_alone(llama):
    noisy, quiet, alone = new_run(llama, seed=1, neftune_alpha=8.0), new_run(llama, seed=2), new_run(llama, seed=2)
    noisy_alone = new_run(llama, seed=1, neftune_alpha=8.0)
    together = finish(llama, noisy, quiet)
    assert [loss for is_noisy, loss in together if is_noisy] == pytest.approx(
        [loss for _, loss in finish(llama, noisy_alone)], abs=1e-5
    )
    assert [loss for is_noisy, loss in together if not is_noisy] == pytest.approx(
        [loss for _, loss in finish(llama, alone)], abs=1e-5
    )


def test_loaded_after_any_step_a_noisy_run_ends_with_the_same_bits(llama):
    whole = new_run(llama, neftune_alpha=5.0)
    states = []
    for _ in train(llama, [whole]):
        tensors, facts = whole.state()
        states.append(({name: tensor.clone() for name, tensor in tensors.items()}, facts))
    for state in states:
        again = new_run(llama, start=1, neftune_alpha=5.0)
        again.load(*state)
        finish(llama, again)
        assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(whole), strict=True))


def test_checkpointing_changes_no_noise(new_base):
    losses = []
    for checkpointing in (False, True):
        model = RoutedModel(new_base(), checkpointing=checkpointing)
        assert facts_of_routed(model)
        losses.append(finish(model, new_run(model, neftune_alpha=5.0)))
    assert losses[0] == losses[1]
