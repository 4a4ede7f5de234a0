"""What a base makes of words and of hidden states, on every family."""

import pytest
import torch

from core.cache import KVCache
from core.effects import KVPrefix
from core.model import RoutedModel, Rows
from core.reading import with_reading
from core.routing import Routing

WORDS = [5, 17, 80, 3, 42, 9]


def apart(left, right):
    return (left - right).abs().max().item()


@pytest.fixture
def facts(family, model, new_facts):
    """The facts of a routed model of each family."""
    return with_reading(new_facts(family), model)


def test_keys_and_values_are_what_the_cache_holds_after_the_words(facts, model):
    cache = KVCache.for_model(model, slots=1, length=6)
    with model.wearing(Routing.of_rows([None])):
        model(Rows.of([WORDS], slots=[cache.take()]), cache)
    reading = facts.read(WORDS)
    assert torch.equal(reading.keys, cache.keys[:, 0].transpose(1, 2))
    assert torch.equal(reading.values, cache.values[:, 0].transpose(1, 2))
    assert reading.hidden.shape == (facts.layers, 6, facts.hidden)


@pytest.mark.parametrize("count", [1, 6])
def test_hidden_states_of_words_are_projected_to_the_keys_and_values_of_the_words(count, facts):
    reading = facts.read(WORDS[:count])
    keys, values = facts.project(reading.hidden)
    assert apart(keys, reading.keys) < 1e-5
    assert apart(values, reading.values) < 1e-5
    shuffled, _ = facts.project(reading.hidden.flip(0))
    assert apart(shuffled, reading.keys) > 1e-2  # each layer projects its own


def test_gradients_of_a_projection_are_those_that_finite_differences_find(facts):
    hidden = facts.read(WORDS).hidden.requires_grad_()
    weights = [torch.randn(facts.layers, 6, facts.kv_heads, facts.head_width) for _ in range(2)]

    def value(at):
        return sum((a * b).sum() for a, b in zip(facts.project(at), weights, strict=True))

    (grad,) = torch.autograd.grad(value(hidden), hidden)
    assert grad.abs().amax((1, 2)).min() > 0  # every layer's
    step = 1e-2 * grad / grad.norm()
    slope = (value(hidden + step) - value(hidden - step)).item() / 2e-2
    assert slope == pytest.approx(grad.norm().item(), rel=2e-2)


def test_reading_leaves_no_hook_and_the_base_as_it_was(facts, model):
    before = {name: p.clone() for name, p in model.base.named_parameters()}
    facts.project(facts.read(WORDS).hidden.requires_grad_())[0].sum().backward()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.base.named_parameters())


def test_with_checkpointing_a_projection_is_the_same(new_base, new_facts):
    plain, again = (with_reading(new_facts(), RoutedModel(new_base(), checkpointing=on)) for on in (False, True))
    hidden = plain.read(WORDS).hidden
    assert all(torch.equal(a, b) for a, b in zip(plain.project(hidden), again.project(hidden), strict=True))


def test_a_prefix_that_is_read_can_be_worn_while_another_batch_is_not_in_flight(facts, model):
    reading = facts.read(WORDS)
    routing = Routing.of_rows([KVPrefix(reading.keys, reading.values)])
    with model.wearing(routing), pytest.raises(RuntimeError, match="one batch is in flight"):
        facts.read(WORDS)


def test_a_family_whose_attention_is_not_found_is_refused(llama, new_facts):
    for layer in llama.base.base_model.layers:
        layer.mixer = layer.self_attn
        del layer.self_attn
    with pytest.raises(ValueError, match="0 found, 2 expected"):
        with_reading(new_facts(), llama)
