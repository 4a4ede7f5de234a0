"""The laws of a method, held on every method there is: in company, decoding, on disk, in training, stopped and resumed.

The laws of effects (test_laws.py) need no method; these run on whatever METHODS holds, so a new method is held to them
by its line in tests/core/methods_in_full.py.
"""

import json

import pytest
import torch
from peft import PeftModel

from core import peft_files
from core.effects import KVPrefix, LowRank, SoftPrompt
from core.methods import METHODS
from core.model import RoutedModel
from core.trainer import Step, train
from tests.core.methods_in_full import LOW_RANK, WEARABLE, effects_of, new_method, new_run, row_for
from tests.core.test_laws import TOLERANCE, apart, decoded, gradients, logits, text

BASES = ["llama", "gpt2", "qwen2", "gemma"]
NAMES = list(WEARABLE)
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
ON_EACH_BASE = pytest.mark.parametrize("base", BASES)


def test_every_method_is_held_to_these_laws():
    assert {fields["type"] for fields in WEARABLE.values()} == set(METHODS)


@pytest.fixture
def worn(base, new_facts):
    """Every method's effects and two bare rows, in one batch: (name, effect, words)."""
    facts = new_facts(base)
    found = [("base", None, text(7, 99))]
    for seed, name in enumerate(NAMES):
        found += [(name, e, text(5 + 2 * seed, seed)) for e in effects_of(new_method(name, facts, seed=seed))]
    return [*found, ("base", None, text(12, 98))]


def together(model, worn):
    return logits(model, [e for _, e, _ in worn], [row_for(e, words) for _, e, words in worn])


@PRECISIONS
@ON_EACH_BASE
def test_a_row_of_any_method_is_the_same_beside_all_others_as_alone(base, dtype, worn, new_base):
    model = RoutedModel(new_base(base, dtype))
    for (name, effect, words), here in zip(worn, together(model, worn), strict=True):
        alone = logits(model, [effect], [row_for(effect, words)])[0]
        assert apart(here, alone) < TOLERANCE[dtype], name


@ON_EACH_BASE
def test_each_method_does_something_of_its_own(base, worn, new_base):
    model = RoutedModel(new_base(base))
    words = text(9, 1)
    bare = logits(model, [None], [words])[0][-1]
    ends = [logits(model, [e], [row_for(e, words)])[0][-1] for _, e, _ in worn if e is not None]
    assert min(apart(end, bare) for end in ends) > 1e-2
    assert min(apart(a, b) for i, a in enumerate(ends) for b in ends[:i]) > 1e-3


@PRECISIONS
@ON_EACH_BASE
def test_a_batch_in_another_order_gives_its_answers_in_that_order(base, dtype, worn, new_base):
    model = RoutedModel(new_base(base, dtype))
    order = list(reversed(range(len(worn))))
    here, there = together(model, worn), together(model, [worn[i] for i in order])
    assert all(apart(there[at], here[i]) < TOLERANCE[dtype] for at, i in enumerate(order))


@PRECISIONS
@ON_EACH_BASE
def test_a_bare_row_beside_all_methods_is_the_plain_base_model(base, dtype, worn, new_base):
    here = together(RoutedModel(new_base(base, dtype)), worn)
    with torch.no_grad():
        plain = new_base(base, dtype)(torch.tensor([worn[-1][2]])).logits[0].float()
    assert apart(here[-1], plain) < TOLERANCE[dtype]


@PRECISIONS
@ON_EACH_BASE
def test_decoding_beside_all_methods_equals_reading_the_whole_row(base, dtype, worn, new_base):
    model = RoutedModel(new_base(base, dtype))
    effects, rows = [e for _, e, _ in worn], [row_for(e, words) for _, e, words in worn]
    for (name, _, _), row, here in zip(worn, decoded(model, effects, rows), together(model, worn), strict=True):
        assert apart(row, here[-len(row) :]) < TOLERANCE[dtype], name


@ON_EACH_BASE
@pytest.mark.parametrize("name", LOW_RANK)
def test_an_untrained_low_rank_method_changes_nothing(base, name, new_base, new_facts):
    model = RoutedModel(new_base(base))
    effect = effects_of(new_method(name, new_facts(base), is_moved=False))[0]
    row = text(12, 1)
    # A DoRA's magnitudes start as the norms themselves, which division gives back to rounding only.
    assert apart(logits(model, [effect], [row])[0], logits(model, [None], [row])[0]) <= (1e-5 if name == "dora" else 0)


@ON_EACH_BASE
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LOW_RANK])
def test_an_untrained_method_of_virtual_tokens_is_not_the_base(base, name, new_base, new_facts):
    model = RoutedModel(new_base(base))
    effect = effects_of(new_method(name, new_facts(base), is_moved=False))[0]
    words = text(12, 1)
    here = logits(model, [effect], [row_for(effect, words)])[0][-1]
    assert apart(here, logits(model, [None], [words])[0][-1]) > 1e-3


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "ensemble"])
def test_stock_peft_computes_what_a_method_wrote(base, name, tmp_path, new_base, new_facts):
    method = new_method(name, new_facts(base), seed=3)
    peft_files.write(method, tmp_path, "a-base")
    model, words = RoutedModel(new_base(base)), text(11, 5)
    read = model.resident(peft_files.read(tmp_path))
    here = logits(model, [read], [row_for(read, words)])[0][-1]
    live = effects_of(method)[0]
    assert apart(here, logits(model, [live], [row_for(live, words)])[0][-1]) < 1e-5
    stock = PeftModel.from_pretrained(new_base(base), tmp_path).eval()
    ids, reserved = in_stock_ids(tmp_path, read, words)
    with torch.no_grad():
        there = stock(torch.tensor([ids])).logits[0, -1]
    # Where the head is tied to the table, the reserved ids' own logits are replaced too: no answer may hold them.
    words_left = [i for i in range(len(here)) if i not in reserved]
    assert apart(there[words_left], here[words_left]) < 1e-5
    assert apart(here, logits(model, [None], [words])[0][-1]) > 1e-3


def in_stock_ids(folder, effect, words):
    """Stock PEFT puts a prompt in front by itself; a template is written with the reserved ids that stand for it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    if config["peft_type"] != "TRAINABLE_TOKENS":
        return words, []
    reserved = config["token_indices"]
    return [i if i >= 0 else reserved[-1 - i] for i in effect.layout.around(words)], reserved


@ON_EACH_BASE
def test_methods_trained_in_one_batch_learn_what_each_learns_alone(base, new_base, new_facts):
    facts = new_facts(base)

    def losses(names):
        runs = {name: new_run(name, facts, seed=i, data_seed=i, n_epochs=1) for i, name in enumerate(NAMES)}
        model = RoutedModel(new_base(base))
        events = list(train(model, [runs[name] for name in names]))
        assert all(isinstance(event, Step) for event in events)
        return {name: [e.loss for e in events if e.run is runs[name]] for name in names}

    company = losses(NAMES)
    for name in NAMES:
        assert company[name] == pytest.approx(losses([name])[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_and_leaves_the_base_bitwise_as_it_was(name, llama, new_facts):
    before = {key: p.clone() for key, p in llama.base.named_parameters()}
    run = new_run(name, new_facts(), n_epochs=12, learning_rate=0.02)
    losses = [event.loss for event in train(llama, [run])]
    epoch = run.steps_per_epoch
    assert sum(losses[-epoch:]) < sum(losses[:epoch]) - 0.1
    assert all(torch.equal(p, before[key]) and p.grad is None for key, p in llama.base.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient_of_any_method(name, new_base, new_facts):
    def grads(model):
        run = new_run(name, new_facts(), is_moved=True, weight_decay=0.0)
        kept = []
        run.optimiser.step = lambda: kept.extend(p.grad.clone() for p in run.parameters)
        run.method.after_step = lambda *_: None
        next(train(model, [run]))
        return kept

    plain, again = grads(RoutedModel(new_base())), grads(RoutedModel(new_base(), checkpointing=True))
    assert len(plain) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert max(g.abs().max() for g in plain) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_method_stopped_after_any_step_ends_with_the_same_bits(name, llama, new_facts):
    whole = new_run(name, new_facts(), n_epochs=3)
    states, losses = [], []
    for event in train(llama, [whole]):
        losses.append(event.loss)
        tensors, facts = whole.state()
        states.append(({key: tensor.clone() for key, tensor in tensors.items()}, facts))
    for stopped, state in enumerate(states[:-1], start=1):
        again = new_run(name, new_facts(), seed=stopped, n_epochs=3)
        again.load(*state)
        assert [event.loss for event in train(llama, [again])] == losses[stopped:]
        for (key, a), b in zip(whole.method.state_dict().items(), again.method.state_dict().values(), strict=True):
            assert torch.equal(a, b), key


@pytest.mark.parametrize("name", NAMES)
def test_a_method_resumed_without_its_own_state_would_show_it(name, llama, new_facts):
    whole, again = new_run(name, new_facts(), n_epochs=3), new_run(name, new_facts(), seed=5, n_epochs=3)
    steps = train(llama, [whole])
    next(steps), next(steps)
    tensors, facts = whole.state()
    fresh = {key: t for key, t in again.state()[0].items() if key.startswith("method.")}
    again.load(tensors | fresh, facts)
    rest = [event.loss for event in steps]
    assert [event.loss for event in train(llama, [again])] != rest


@pytest.mark.parametrize("name", ["lora", "prefix kv", "prompt", "p-tuning"])
def test_the_kind_of_effect_is_the_methods_own(name, new_facts):
    kinds = {"lora": LowRank, "prefix kv": KVPrefix, "prompt": SoftPrompt, "p-tuning": SoftPrompt}
    assert isinstance(effects_of(new_method(name, new_facts()))[0], kinds[name])


def test_gradients_of_two_methods_in_one_batch_come_from_their_own_rows_only(llama, new_facts):
    facts = new_facts()
    methods = [new_method("lora", facts, seed=1), new_method("adalora", facts, seed=2)]
    rows = [text(14, 1), text(9, 2)]
    here = gradients(llama, methods, rows)
    for method, row, grads in zip(methods, rows, here, strict=True):
        alone = gradients(llama, [method], [row])[0]
        pairs = [(a, b) for a, b in zip(grads, alone, strict=True) if b is not None]
        assert all(apart(a, b) <= 1e-5 * b.abs().max().item() + 1e-6 for a, b in pairs)
