"""DPO: the paper's formula, whatever the cutting and the company; its reference is the base that is there already."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from methods_in_full import detached
from token_rows import PLAIN, facts_of_routed, new_run, random_corpus, spec
from virtual_runs import make, opened, row_in, spec_of

from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.methods import Lora
from core.model import Rows
from core.preferences import Pairs, bare
from core.routing import Routing
from core.run import Run
from core.specs.training import DPO, TrainSpec
from core.trainer import Step, train

BETA = 0.3


def pairs(rows=6, seed=0):
    """Random answers; nothing here needs them to share a prompt."""
    return Pairs(random_corpus(rows, seed=seed), random_corpus(rows, seed=seed + 100))


def dpo_run(model, *, start=0, moved=0.0, reference=None, rows=6, **changes):
    """moved: how far its B is from zero, as if it had learned something."""
    chosen = spec(dpo=DPO(beta=BETA), **({"batch_size": 3, "n_epochs": 2} | changes))
    lora = Lora(chosen.method, facts_of_routed(model), generator=torch.Generator().manual_seed(chosen.seed + start))
    with torch.no_grad():
        for b in lora.b:
            b.normal_(0, 1, generator=torch.Generator().manual_seed(9)).mul_(moved)
    return Run(chosen, lora, pairs(rows), reference=reference)


def weights(run):
    return [parameter.detach().clone() for parameter in run.method.parameters()]


def log_probability(model, effect, row):
    """Summed over the learned tokens, from logits that exist whole."""
    routing = Routing.of_rows([effect])
    with model.wearing(routing):
        hidden = model(Rows.of([torch.from_numpy(row.ids)], first_positions=routing.first_positions()))
    likely = model.logits(hidden).float().log_softmax(-1)
    at = torch.from_numpy(row.learned).nonzero()[:, 0]
    return likely[at - 1, torch.from_numpy(row.ids).long()[at]].sum()


def plain_loss(model, run, places, reference=None):
    """Equation 7, pair by pair: (loss, margins)."""
    effect, losses, margins = run.method.effect(), [], []
    for place in places:
        chosen, rejected = run.corpus.rows_of(place)
        gain = log_probability(model, effect, chosen) - log_probability(model, reference, chosen).detach()
        loss = log_probability(model, effect, rejected) - log_probability(model, reference, rejected).detach()
        margins.append(BETA * (gain - loss))
        losses.append(-torch.log(torch.sigmoid(margins[-1])))
    return torch.stack(losses).mean(), torch.stack(margins)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_a_step_is_the_papers_formula_however_it_is_cut(llama, tokens_per_batch):
    run = dpo_run(llama, moved=0.05, tokens_per_batch=tokens_per_batch)
    loss, margins = plain_loss(llama, run, run.next_rows())
    gradients = torch.autograd.grad(loss, run.parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    step = next(train(llama, [run]))
    assert step.loss == pytest.approx(loss.item(), abs=1e-5)
    assert step.reward_margin == pytest.approx(margins.mean().item(), abs=1e-5)
    assert step.accuracy == pytest.approx((margins > 0).float().mean().item())
    assert step.grad_norm == pytest.approx(norm, rel=1e-4)
    assert abs(step.reward_margin) > 1e-3  # else nothing is shown


def test_the_gradient_itself_is_the_formulas_and_a_wrong_sign_would_show(llama):
    run = dpo_run(llama, moved=0.05, tokens_per_batch=30)
    loss, _ = plain_loss(llama, run, run.next_rows())
    expected = torch.autograd.grad(loss, run.parameters)
    kept = []
    run.update = lambda _: kept.extend(p.grad.clone() for p in run.parameters) or 0.0
    next(train(llama, [run]))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept, expected, strict=True))
    assert not all(torch.allclose(a, -b, atol=1e-5) for a, b in zip(kept, expected, strict=True))


def test_an_untrained_adapter_is_its_own_reference(llama):
    step = next(train(llama, [dpo_run(llama)]))
    assert (step.loss, step.reward_margin) == (pytest.approx(math.log(2), abs=1e-6), pytest.approx(0.0, abs=1e-5))


def test_a_run_that_goes_on_from_an_adapter_is_held_to_that_adapter(llama):
    reference = detached(dpo_run(llama, moved=0.1).method.effect())
    reference = replace(reference, a={k: t.clone() for k, t in reference.a.items()})
    reference = replace(reference, b={k: t.clone() for k, t in reference.b.items()})
    held, free = dpo_run(llama, moved=0.1, reference=reference), dpo_run(llama, moved=0.1)
    first, *rest = train(llama, [held])
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert rest[-1].loss != pytest.approx(math.log(2), abs=1e-3)
    assert next(train(llama, [free])).loss != pytest.approx(math.log(2), abs=1e-3)  # held to the bare base


def test_training_makes_the_chosen_answers_likelier_than_the_rejected(llama):
    events = list(train(llama, [dpo_run(llama, n_epochs=15, learning_rate=0.01)]))
    assert all(isinstance(event, Step) for event in events)
    assert events[-1].loss < 0.3 < events[0].loss
    assert events[-1].accuracy == 1.0
    assert events[-1].reward_margin > 1.0


def test_pairs_and_examples_are_learned_in_step_as_each_alone(llama):
    together = [dpo_run(llama, moved=0.05), new_run(llama, seed=3)]
    alone = [dpo_run(llama, moved=0.05), new_run(llama, seed=3)]
    events = list(train(llama, together))
    for run, single in zip(together, alone, strict=True):
        expected = list(train(llama, [single]))
        mine = [event for event in events if event.run is run]
        assert [e.loss for e in mine] == pytest.approx([e.loss for e in expected], abs=1e-4)
        assert [e.reward_margin is None for e in mine] == [e.reward_margin is None for e in expected]


def test_loaded_after_any_step_it_ends_with_the_same_bits(llama):
    how = {"moved": 0.05, "method": {"lora_dropout": 0.2}, "n_epochs": 3}
    whole, states = dpo_run(llama, **how), []
    for _ in train(llama, [whole]):
        tensors, facts = whole.state()
        states.append(({name: tensor.clone() for name, tensor in tensors.items()}, facts))
    for state in states:
        again = dpo_run(llama, start=1, **how)
        again.load(*state)
        list(train(llama, [again]))
        assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(whole), strict=True))


@pytest.mark.parametrize("kind", ["prefix kv", "prompt", "p mlp", "ensemble"])
def test_the_reference_of_virtual_tokens_is_the_base_without_them(kind, new_base):
    model, facts = opened(new_base())
    method = make(kind, facts)
    run_spec = TrainSpec(method=spec_of(kind), dpo=DPO(beta=BETA), **PLAIN)
    members = method.effect().members if kind == "ensemble" else (method.effect(),)
    random, corpora = np.random.default_rng(0), []
    for answer in ([71, 13], [9, 30, 4]):
        rows = []
        for line in range(4):
            prompt = row_in(members[0], random.integers(3, 85, 5).tolist())
            ids = np.array(prompt + answer, np.int32)
            rows.append(TokenRow(line, ids, np.arange(len(ids)) >= len(prompt)))
        corpora.append(Corpus.of(rows))
    run = Run(run_spec, method, Pairs(*corpora))
    margins = []
    for member in members:
        for chosen, rejected in map(run.corpus.rows_of, run.next_rows()):
            with torch.no_grad():
                gain = log_probability(model, member, chosen) - log_probability(model, None, bare(chosen))
                loss = log_probability(model, member, rejected) - log_probability(model, None, bare(rejected))
            margins.append(BETA * (gain - loss).item())
    step = next(train(model, [run]))
    assert step.reward_margin == pytest.approx(sum(margins) / len(margins), abs=1e-4)


def test_pairs_and_dpo_belong_together(llama):
    lora = dpo_run(llama).method
    for chosen, corpus in ((spec(), pairs()), (spec(dpo=DPO()), random_corpus(3))):
        with pytest.raises(ValueError, match="only dpo does"):
            Run(chosen, lora, corpus)


def test_rows_without_a_partner_make_no_pairs():
    with pytest.raises(ValueError, match="3 chosen rows and 2 rejected"):
        Pairs(random_corpus(3), random_corpus(2))
