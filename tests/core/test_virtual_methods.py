"""What must hold of prefix tuning, prompt tuning and P-tuning. Each law has a control that breaks it."""

import pytest
import torch
from torch import nn
from virtual_runs import KINDS, WORDS, apart, corpus_for, encode, logits, make, opened, row_in, run_of

from core.effects import Ensemble, KVPrefix, members_of
from core.losses import next_token_loss
from core.methods.prompt_tuning import generator_of_member
from core.model import Rows
from core.routing import Routing, resident
from core.run import Run
from core.trainer import evaluate, train

TEXT = "sort it"
EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def llama(new_base):
    """A tiny Llama and its facts."""
    return opened(new_base())


def weights(method):
    return [p.detach().clone() for p in method.parameters()]


def baked(model, method):
    with torch.no_grad():
        return model.resident(method.effect())


@pytest.mark.parametrize("parametrization", ["kv", "hidden"])
def test_an_untrained_prefix_of_words_is_prompting_with_them(parametrization, family, new_base):
    model, facts = opened(new_base(family))
    words = encode(TEXT)
    prefix, other = (
        make("prefix kv", facts, parametrization=parametrization, num_virtual_tokens=7, **start).effect()
        for start in ({"prefix_init": "text", "prefix_init_text": TEXT}, {})
    )
    plain = logits(model, [None], [words + WORDS])[0][len(words) :]
    assert apart(logits(model, [prefix], [WORDS])[0], plain) < 1e-5
    assert apart(logits(model, [other], [WORDS])[0], plain) > 1e-2


@pytest.mark.parametrize(("count", "words"), [(3, "sor"), (10, "sort itsor")])
def test_a_prefix_reads_its_words_again_and_again_or_a_part_of_them(count, words, llama):
    model, facts = llama
    start = {"prefix_init": "text", "prefix_init_text": TEXT, "num_virtual_tokens": count}
    prefix = make("prefix kv", facts, **start).effect()
    plain = logits(model, [None], [encode(words) + WORDS])[0][count:]
    assert apart(logits(model, [prefix], [WORDS])[0], plain) < 1e-5


def test_a_prefix_of_zeros_is_not_nothing(model, family, new_facts):
    facts = new_facts(family)
    shape = (facts.layers, 3, facts.kv_heads, facts.head_width)
    zeros = KVPrefix(torch.zeros(shape), torch.zeros(shape))
    assert apart(logits(model, [zeros], [WORDS])[0], logits(model, [None], [WORDS])[0]) > 1e-2


@EVERY
def test_baked_it_is_what_it_is_live(kind, llama):
    model, facts = llama
    method = make(kind, facts)
    constant = [resident(e, device="cpu", dtype=torch.float32) for e in members_of(method.effect())]
    with torch.no_grad():
        live = members_of(method.effect())
    rows = [row_in(effect, WORDS) for effect in live]
    here = logits(model, live, rows)
    if not kind.startswith("p lstm"):  # with dropout, what is live with gradients is another
        assert all(apart(a, b) <= 1e-6 for a, b in zip(here, logits(model, constant, rows), strict=True))
    with torch.no_grad():
        constant = [model.resident(e) for e in members_of(method.effect())]
        assert all(apart(a, b) <= 1e-6 for a, b in zip(here, logits(model, constant, rows), strict=True))
        for parameter in method.parameters():
            parameter.add_(0.1)
        live = members_of(method.effect())
    assert all(apart(a, b) > 1e-3 for a, b in zip(logits(model, live, rows), here, strict=True))
    assert all(apart(a, b) <= 1e-6 for a, b in zip(logits(model, constant, rows), here, strict=True))


class Identity(nn.Module):
    def forward(self, seeds, _):
        return seeds


def test_p_tuning_in_front_without_an_encoder_is_prompt_tuning(llama):
    model, facts = llama
    prompt, p_tuning = make("prompt", facts), make("p mlp", facts, template="{v:4}{input}{target}")
    with torch.no_grad():
        p_tuning.seeds.copy_(prompt.prompts[0])
    row = row_in(prompt.effect(), WORDS)
    assert row_in(p_tuning.effect(), WORDS) == row
    here = logits(model, [prompt.effect()], [row])[0]
    assert apart(here, logits(model, [p_tuning.effect()], [row])[0]) > 1e-2
    p_tuning.encoder = Identity()
    assert torch.equal(here, logits(model, [p_tuning.effect()], [row])[0])


def gradients(model, methods, corpora):
    """Of each method's parameters, when all rows are trained in one batch."""
    effects = [members_of(m.effect()) for m in methods]
    rows, worn = [], []
    for members, corpus in zip(effects, corpora, strict=True):
        for row in corpus:
            rows += [row] * len(members)
            worn += members
    for method in methods:
        method.zero_grad(set_to_none=True)
    routing = Routing.of_rows(worn)
    batch = Rows.of([torch.from_numpy(r.ids) for r in rows], first_positions=routing.first_positions())
    learned = torch.cat([torch.from_numpy(r.learned) for r in rows])
    with model.wearing(routing):
        next_token_loss(model, model(batch), batch.ids, learned, batch.starts).total.backward()
    return [[p.grad for p in m.parameters()] for m in methods]


def test_all_kinds_in_one_batch_get_the_gradients_they_would_get_alone(llama):
    model, facts = llama
    methods = [make(kind, facts, seed=number) for number, kind in enumerate(KINDS)]
    corpora = [corpus_for(method, rows=2, seed=number) for number, method in enumerate(methods)]
    together = gradients(model, methods, corpora)
    for method, corpus, here in zip(methods, corpora, together, strict=True):
        alone = gradients(model, [method], [corpus])[0]
        for a, b in zip(here, alone, strict=True):
            assert b.abs().max() > 0
            assert apart(a, b) <= 1e-5 * b.abs().max().item() + 1e-6
        other = gradients(model, [method], [corpus_for(method, rows=2, seed=99)])[0]
        assert max(apart(a, b) for a, b in zip(here, other, strict=True)) > 1e-3


@EVERY
def test_checkpointing_changes_no_gradient(kind, new_base):
    found = []
    for on in (False, True):
        model, facts = opened(new_base(), checkpointing=on)
        method = make(kind, facts)
        found.append(gradients(model, [method], [corpus_for(method, rows=3)])[0])
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*found, strict=True))


@EVERY
def test_the_loss_falls_and_the_base_model_stays_bitwise_as_it_was(kind, llama):
    model, facts = llama
    before = {name: p.clone() for name, p in model.base.named_parameters()}
    run = run_of(kind, facts, n_epochs=30, learning_rate=0.03, weight_decay=0.0)
    losses = [event.loss for event in train(model, [run])]
    assert sum(losses[-4:]) / 4 < 0.8 * sum(losses[:2]) / 2
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.base.named_parameters())
    *_, score = evaluate(model, run.method, run.corpus, 256)
    assert score.loss < losses[0]


@EVERY
def test_loaded_after_any_step_it_ends_with_the_same_bits_and_losses(kind, llama):
    model, facts = llama
    whole = run_of(kind, facts, n_epochs=2, batch_size=3)
    states, losses = [whole.state()], []
    for event in train(model, [whole]):
        losses.append(event.loss)
        tensors, counters = whole.state()
        states.append(({name: tensor.clone() for name, tensor in tensors.items()}, counters))
    for stopped in (1, 4):
        again = run_of(kind, facts, n_epochs=2, batch_size=3, start=stopped)
        again.load(*states[stopped])
        assert [event.loss for event in train(model, [again])] == losses[stopped:]
        assert all(torch.equal(a, b) for a, b in zip(weights(again.method), weights(whole.method), strict=True))


@pytest.mark.parametrize("lost", ["method.key", "method.step"])
def test_a_part_of_dropouts_key_that_were_lost_would_show_in_the_bits(lost, llama):
    model, facts = llama
    whole, stopped, again = (run_of("p lstm", facts) for _ in range(3))
    list(train(model, [whole]))
    steps = train(model, [stopped])
    next(steps), next(steps)
    tensors, counters = stopped.state()
    again.load(tensors | {lost: torch.full_like(tensors[lost], 77)}, counters)
    list(train(model, [again]))
    assert not all(torch.equal(a, b) for a, b in zip(weights(again.method), weights(whole.method), strict=True))


def single(facts, member, seed, **changes):
    """A run of one prompt that starts as the member of an ensemble."""
    run = run_of("prompt", facts, **changes)
    own = make("prompt", facts, seed=generator_of_member(torch.Generator().manual_seed(seed), member).initial_seed())
    return Run(run.spec, own, run.corpus)


# So small a limit that every step is clipped: the norm of all members together would shorten each by about sqrt(3).
@pytest.mark.parametrize("max_grad_norm", [1.0, 1e-3])
def test_a_member_of_an_ensemble_learns_what_it_would_learn_alone(max_grad_norm, llama):
    model, facts = llama
    together = run_of("ensemble", facts, n_epochs=3, max_grad_norm=max_grad_norm)
    list(train(model, [together]))
    for member, prompt in enumerate(together.method.prompts):
        alone = single(facts, member, together.spec.seed, n_epochs=3, max_grad_norm=max_grad_norm)
        list(train(model, [alone]))
        assert apart(prompt, alone.method.prompts[0]) < 1e-6
    assert apart(together.method.prompts[0], together.method.prompts[1]) > 1e-2


def test_members_that_were_clipped_together_would_learn_something_else(llama, monkeypatch):
    model, facts = llama
    # SGD, since Adam divides a common factor out again.
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **_: torch.optim.SGD(groups, lr=0.1))
    apart_when = {}
    for are_together in (False, True):
        together = run_of("ensemble", facts, n_epochs=3, max_grad_norm=1e-2)
        if are_together:
            together._bundles = [together.parameters]
        list(train(model, [together]))
        alone = single(facts, 0, together.spec.seed, n_epochs=3, max_grad_norm=1e-2)
        list(train(model, [alone]))
        apart_when[are_together] = apart(together.method.prompts[0], alone.method.prompts[0])
    assert apart_when[False] < 1e-6
    assert apart_when[True] > 1e-5


def test_a_row_that_wears_one_of_identical_members_is_that_of_a_single_prompt(llama):
    model, facts = llama
    method = make("ensemble", facts)
    with torch.no_grad():
        for prompt in method.prompts:
            prompt.copy_(method.prompts[0])
    effect = method.effect()
    assert isinstance(effect, Ensemble)
    row = row_in(effect.members[0], WORDS)
    here = logits(model, effect.members, [row] * 3)
    alone = logits(model, [make("prompt", facts).effect()], [row])[0]
    assert all(apart(a, alone) < 1e-5 for a in here)
