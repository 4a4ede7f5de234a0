"""Going on from an adapter's file: the method then does what the file says, or says why it cannot."""

import pytest
import torch
from methods_in_full import WEARABLE, new_method, row_for, spec_of

from core import adapter_files, peft_files
from core.effects import members_of
from core.methods import METHODS
from core.model import RoutedModel, Rows
from core.routing import Routing

CONTINUED = ("lora", "dora", "qlora", "prefix kv", "prompt", "ensemble")
WORDS = [5, 17, 80, 3, 42]


def through_file(method, folder):
    """As it is read from its PEFT zip."""
    adapter_files.write(method, folder / "adapter", "tiny")
    peft_files.pack(folder / "adapter", folder / "adapter.zip")
    return adapter_files.read_zip(folder / "adapter.zip")


def hidden(model, effect):
    """Of each member's row."""
    found = []
    for member in members_of(effect):
        routing = Routing.of_rows([member])
        with torch.no_grad(), model.wearing(routing):
            found.append(model(Rows.of([row_for(member, WORDS)], first_positions=routing.first_positions())))
    return found


@pytest.mark.parametrize("name", CONTINUED)
def test_it_does_what_the_adapter_did(name, new_base, new_facts, tmp_path):
    old, fresh = new_method(name, new_facts()), new_method(name, new_facts(), seed=5, is_moved=False)
    before = hidden(model := RoutedModel(new_base()), fresh.effect())
    fresh.continue_from(through_file(old, tmp_path))
    expected, found = hidden(model, old.effect()), hidden(model, fresh.effect())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(expected, before, strict=True))  # the control
    assert all(p.requires_grad for group in fresh.groups() for p in group.parameters)


def test_a_lora_at_another_scale_goes_on_from_the_same_update(new_base, new_facts, tmp_path):
    old = new_method("lora", new_facts())
    fresh = new_method("lora", new_facts(), seed=5, is_moved=False, lora_alpha=3.0, use_rslora=True)
    fresh.continue_from(through_file(old, tmp_path))
    (expected,), (found,) = (hidden(RoutedModel(new_base()), method.effect()) for method in (old, fresh))
    assert torch.allclose(expected, found, atol=1e-5)


def test_a_lora_goes_on_from_what_adalora_left(new_base, new_facts, tmp_path):
    facts = new_facts()
    old = new_method("adalora", facts)
    with torch.no_grad():
        for number, triplets in enumerate(old.triplets):
            triplets.keep(torch.arange(6) < 1 + number % 5)
    effect = through_file(old, tmp_path)
    ranks = {site: len(a) for site, a in effect.a.items()}
    fresh = new_method("lora", facts, is_moved=False, rank_pattern=ranks)
    fresh.continue_from(effect)
    (expected,), (found,) = (hidden(RoutedModel(new_base()), worn) for worn in (effect, fresh.effect()))
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_began_from_the_weights_goes_on_as_a_plain_lora_of_twice_the_rank(start, new_base, new_facts, tmp_path):
    old = new_method("lora", new_facts(), init_lora_weights=start)
    effect = through_file(old, tmp_path)
    with pytest.raises(ValueError, match="twice the r"):
        old.continue_from(effect)
    fresh = new_method("lora", new_facts(), r=8, is_moved=False)
    fresh.continue_from(effect)
    (expected,), (found,) = (hidden(RoutedModel(new_base()), method.effect()) for method in (old, fresh))
    assert torch.allclose(expected, found, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("lora", {"r": 5}, "rank 4 in the adapter and 5 here"),
        ("lora", {"target_modules": ("q_proj",)}, "different layers"),
        ("lora", {"use_dora": True}, "use_dora"),
        ("prefix kv", {"num_virtual_tokens": 4}, "num_virtual_tokens is 4, and of the adapter it is 3"),
        ("prompt", {"num_virtual_tokens": 5}, "must be the same"),
        ("prompt", {"ensemble_size": 2}, "must be the same"),
    ],
)
def test_an_adapter_of_another_size_is_refused_by_what_differs(name, changes, said, new_facts, tmp_path):
    effect = through_file(new_method(name, new_facts()), tmp_path)
    fresh = new_method(name, new_facts(), is_moved=False, **changes)
    with pytest.raises(ValueError, match=said):
        fresh.continue_from(effect)


@pytest.mark.parametrize("name", WEARABLE)
def test_an_adapter_of_another_kind_is_refused(name, new_facts, tmp_path):
    other = "prompt" if name not in ("prompt", "ensemble") else "lora"
    effect = through_file(new_method(other, new_facts()), tmp_path)
    with pytest.raises(ValueError, match="on from a"):
        new_method(name, new_facts(), is_moved=False).continue_from(effect)


@pytest.mark.parametrize(
    ("name", "said"),
    [("adalora", "rank_pattern"), ("prefix mlp", "parametrization 'kv'"), ("p-tuning", "not the encoder")],
)
def test_what_a_file_does_not_hold_is_refused_with_a_way_out(name, said, new_facts, tmp_path):
    method = new_method(name, new_facts())
    effect = through_file(method, tmp_path)
    with pytest.raises(ValueError, match=said):
        method.continue_from(effect)


def test_every_method_says_whether_it_can_go_on():
    assert {spec_of(name).type for name in WEARABLE} == set(METHODS)
