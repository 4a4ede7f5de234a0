"""Layers of one input, multiplied as one, say what each says by itself."""

import pytest
import torch

from core.model import RoutedModel, Rows
from core.packed_model import pack_model
from core.routing import Routing
from core.siblings import Siblings, siblings_of


def said(model, effects, lengths):
    """Logits of every token of rows of these lengths, without gradients."""
    rows = [[(3 + 7 * n + i) % 90 for i in range(length)] for n, length in enumerate(lengths)]
    with torch.inference_mode(), model.wearing(Routing.of_rows(effects)):
        return model.logits(model(Rows.of(rows)))


@pytest.mark.parametrize("sites", ["all-linear", ("q_proj", "v_proj"), ("up_proj",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_siblings_say_together_what_they_say_apart(sites, dtype, new_base, new_facts, new_lora):
    lora, found = new_lora(new_facts("qwen2"), r=4, target_modules=sites).effect(), []
    for with_siblings in (False, True):
        model = RoutedModel(new_base("qwen2", dtype))
        if with_siblings:
            assert all(Siblings(group) for group in siblings_of(model.sites))
        worn = model.resident(lora)
        found.append([said(model, [worn, None, worn], [5, 3, 20]), said(model, [None], [2])])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, atol=tolerance, rtol=1e-2)
    assert not torch.allclose(found[0][0][:2], found[0][1], atol=tolerance)  # the adapter says something


def test_three_layers_become_one_product_and_two_another(new_base):
    model = RoutedModel(new_base("llama"))
    names = [[site.site.rpartition(".")[2] for site in group] for group in siblings_of(model.sites)]
    assert names == [["q_proj", "k_proj", "v_proj"]] * 2 + [["gate_proj", "up_proj"]] * 2
    assert siblings_of(RoutedModel(new_base("gpt2")).sites) == []  # which lays them under one another itself


def test_the_numbers_that_siblings_hold_are_asked_for_and_not_their_layers(new_base):
    model = RoutedModel(new_base("llama"))
    before = said(model, [None], [4])
    pack_model(model)
    torch.testing.assert_close(said(model, [None], [4]), before, atol=1e-5, rtol=1e-5)
    siblings = model.sites["model.layers.0.self_attn.q_proj"].siblings
    siblings._packed.zero_()
    assert not torch.allclose(said(model, [None], [4]), before, atol=1e-3)


def test_of_what_was_asked_nothing_is_kept_once_the_last_has_answered(new_base):
    model = RoutedModel(new_base("llama"))
    pack_model(model)
    said(model, [None], [4])
    assert all(site.siblings is None or site.siblings._y is None for site in model.sites.values())


def test_a_layer_that_is_asked_about_another_input_does_not_answer_about_the_first():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 3), torch.nn.Linear(4, 2)])
    first, last = (
        type("Site", (), {"site": n, "base": b, "siblings": None})() for n, b in zip("ab", model, strict=True)
    )
    siblings, x, other = Siblings([first, last]), torch.randn(2, 4), torch.randn(2, 4)
    with torch.inference_mode():
        siblings.part("a", x)
        torch.testing.assert_close(siblings.part("b", other), model[1](other))
        assert not torch.allclose(model[1](other), model[1](x))


def test_bf16_weights_become_parts_of_one_and_keep_their_numbers(new_base):
    model = RoutedModel(new_base("llama", torch.bfloat16))
    group = siblings_of(model.sites)[0]
    before = [site.base.weight.clone() for site in group]
    Siblings(group)
    assert all(torch.equal(site.base.weight, w) for site, w in zip(group, before, strict=True))
    assert len({site.base.weight.untyped_storage().data_ptr() for site in group}) == 1
