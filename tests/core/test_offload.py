"""What a checkpointed layer keeps waits on the host, and backward finds the same gradients to the bit."""

import pytest
import torch

from core import offload
from core.methods import METHODS
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.specs.method import LoraSpec
from tests.core.token_rows import random_corpus

ROWS = [row.ids.tolist() for row in random_corpus(3, seed=1)]


def gradients(model, facts):
    method = METHODS["lora"](LoraSpec(r=4), facts, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for b in method.b:
            b.fill_(0.01)
    with model.wearing(Routing.of_rows([method.effect()] * len(ROWS))):
        hidden = model(Rows.of(ROWS))
        hidden.square().sum().backward()
    return [parameter.grad for parameter in method.parameters()]


@pytest.fixture
def waiting(monkeypatch):
    """The shapes of all that was put away, in order; whatever comes back is counted too."""
    seen = {"away": [], "back": 0}

    def put_away(kept, act=offload.put_away):
        seen["away"].append(tuple(kept.shape))
        return act(kept)

    def brought_back(away, act=offload.brought_back):
        seen["back"] += 1
        return act(away)

    monkeypatch.setattr(offload, "put_away", put_away)
    monkeypatch.setattr(offload, "brought_back", brought_back)
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3"])
def test_a_layers_inputs_and_nothing_else_wait_and_no_gradient_changes(family, new_base, new_facts, waiting):
    base = new_base(family)
    layers, tokens = base.config.num_hidden_layers, sum(len(row) for row in ROWS)
    plain = gradients(RoutedModel(new_base(family)), new_facts(family))
    assert waiting["away"] == []
    away = gradients(RoutedModel(base, checkpointing=True, offload=True), new_facts(family))
    assert waiting["away"] == [(1, tokens, base.config.hidden_size)] * layers
    assert waiting["back"] == layers
    assert all(torch.equal(one, other) for one, other in zip(plain, away, strict=True))


def test_what_waits_is_a_copy_and_not_the_tensor_itself():
    kept = torch.randn(3, 4)
    device, there = offload.put_away(kept)
    assert there.data_ptr() != kept.data_ptr()
    kept_before = kept.clone()
    kept.zero_()
    assert torch.equal(offload.brought_back((device, there)), kept_before)


def test_inputs_that_came_back_wrong_would_show_in_the_gradients(new_base, new_facts, monkeypatch):
    """The negative control."""
    plain = gradients(RoutedModel(new_base()), new_facts())
    monkeypatch.setattr(offload, "brought_back", lambda away: away[1] * 1.01)
    wrong = gradients(RoutedModel(new_base(), checkpointing=True, offload=True), new_facts())
    assert not all(torch.equal(one, other) for one, other in zip(plain, wrong, strict=True))
