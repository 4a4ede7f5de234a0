"""LoRA as a method: how it starts, what it counts, what it tells PEFT."""

import math

import pytest
import torch

from core.methods import METHODS
from core.methods.lora import Lora
from core.specs.method import LoraSpec


def test_lora_is_among_the_methods():
    assert METHODS["lora"] is Lora


def test_a_starts_kaiming_uniform_and_b_at_zero(new_facts):
    lora = Lora(LoraSpec(r=8), new_facts())
    for site, a, b in zip(lora.sites, lora.a, lora.b, strict=True):
        assert a.shape == (8, site.width_in)
        assert b.shape == (site.width_out, 8)
        bound = 1 / math.sqrt(site.width_in)
        assert 0.9 * bound < a.abs().max() <= bound
        assert not b.any()


def test_the_same_generator_starts_the_same_adapter(new_facts):
    first, again, other = (
        Lora(LoraSpec(), new_facts(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.a[3], again.a[3])
    assert not torch.equal(first.a[3], other.a[3])


def test_the_trainable_count_is_rank_times_inputs_and_outputs(new_facts):
    facts = new_facts()
    lora = Lora(LoraSpec(r=4, target_modules=("q_proj", "down_proj")), facts)
    assert sum(p.numel() for p in lora.parameters()) == 2 * 4 * ((64 + 64) + (96 + 64))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in lora.parameters())


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 16), (True, 8 / 4)])
def test_the_scale_is_alpha_by_rank_or_by_its_root(use_rslora, scale, new_facts):
    effect = Lora(LoraSpec(r=16, lora_alpha=8, use_rslora=use_rslora, lora_dropout=0.1), new_facts()).effect()
    assert set(effect.scale.values()) == {scale}
    assert effect.dropout == 0.1


def test_a_layer_that_is_not_there_is_named(new_facts):
    with pytest.raises(ValueError, match="query"):
        Lora(LoraSpec(target_modules=("query",)), new_facts())


@pytest.mark.parametrize(
    ("family", "wanted", "targets"),
    [
        ("llama", ("q_proj", "v_proj"), ["q_proj", "v_proj"]),
        ("llama", ("layers.1.mlp.up_proj",), ["model.layers.1.mlp.up_proj"]),
        ("gpt2", ("attn.c_proj",), ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]),
        ("gpt2", "all-linear", ["c_attn", "c_fc", "c_proj"]),
    ],
)
def test_peft_is_told_names_that_catch_our_layers_and_no_others(family, wanted, targets, new_facts):
    assert Lora(LoraSpec(target_modules=wanted), new_facts(family)).peft_config()["target_modules"] == targets


def test_it_adds_no_penalty_and_a_step_changes_nothing(new_facts):
    lora = Lora(LoraSpec(), new_facts())
    before = [p.clone() for p in lora.parameters()]
    lora.after_step(1, 10)
    assert lora.penalty().item() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, lora.parameters(), strict=True))
