"""Prefix tuning as a method: how it starts, what it counts, what it tells PEFT."""

from dataclasses import replace

import pytest
import torch

from core.base.facts import BaseFacts, Reading
from core.methods import METHODS
from core.methods.prefix_tuning import PrefixTuning
from core.specs.method import PrefixTuningSpec

TEXT = {"prefix_init": "text", "prefix_init_text": "ab"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def facts(new_facts) -> BaseFacts:
    """Facts whose reading of words is numbers that anybody can compute."""

    def read(ids):
        count = torch.tensor(list(ids), dtype=torch.float32)[None, :, None, None]
        keys = (count / 10).expand(2, -1, 2, 16)
        return Reading(keys, -keys, (count[..., 0] / 20).expand(2, -1, 64))

    def project(hidden):
        both = hidden.view(2, -1, 4, 16)
        return both[:, :, :2], both[:, :, 2:]

    return replace(new_facts(), encode=lambda text: [ord(c) - 96 for c in text], read=read, project=project)


def test_it_is_among_the_methods():
    assert METHODS["prefix_tuning"] is PrefixTuning


@pytest.mark.parametrize(("count", "parameters"), [(5, 245_760), (10, 491_520)])
def test_gpt2_medium_has_the_papers_count_of_parameters(count, parameters, new_facts):
    medium = replace(new_facts("gpt2"), hidden=1024, layers=24, kv_heads=16, head_width=64)
    prefix = PrefixTuning(PrefixTuningSpec(num_virtual_tokens=count, parametrization="kv"), medium)
    assert sum(p.numel() for p in prefix.parameters()) == parameters
    assert all(p.dtype == torch.float32 and p.requires_grad for p in prefix.parameters())
    effect = prefix.effect()
    assert effect.keys.shape == effect.values.shape == (24, count, 16, 64)


def test_an_mlp_and_hidden_states_count_what_they_are_made_of(facts):
    mlp, hidden = (
        PrefixTuning(PrefixTuningSpec(num_virtual_tokens=3, encoder_hidden_size=8, parametrization=p), facts)
        for p in ("mlp", "hidden")
    )
    assert sum(p.numel() for p in mlp.parameters()) == 3 * 64 + (64 + 1) * 8 + (8 + 1) * 2 * 2 * 2 * 16
    assert sum(p.numel() for p in hidden.parameters()) == 2 * 3 * 64


def test_of_the_mlps_outputs_2l_is_the_key_of_layer_l_and_the_next_its_value(facts):
    prefix = PrefixTuning(PrefixTuningSpec(num_virtual_tokens=3, encoder_hidden_size=8), facts)
    flat = prefix.prefix.mlp(prefix.prefix.seed).view(3, 4, 2, 16)
    effect = prefix.effect()
    for layer in range(2):
        assert torch.equal(effect.keys[layer], flat[:, 2 * layer])
        assert torch.equal(effect.values[layer], flat[:, 2 * layer + 1])


@pytest.mark.parametrize("parametrization", ["kv", "mlp", "hidden"])
def test_the_same_generator_starts_the_same_prefix(parametrization, facts):
    spec = PrefixTuningSpec(parametrization=parametrization)
    first, again, other = (PrefixTuning(spec, facts, generator=seeded(s)).effect() for s in (1, 1, 2))
    assert torch.equal(first.keys, again.keys)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.keys, other.keys)
    assert not torch.equal(first.keys, first.values)


def test_from_words_it_is_their_keys_and_values(facts):
    spec = PrefixTuningSpec(num_virtual_tokens=5, parametrization="kv", **TEXT)
    effect = PrefixTuning(spec, facts).effect()
    assert torch.equal(effect.keys, facts.read([1, 2, 1, 2, 1]).keys)
    assert torch.equal(effect.values, facts.read([1, 2, 1, 2, 1]).values)


def test_from_words_hidden_states_are_those_of_the_words(facts):
    spec = PrefixTuningSpec(num_virtual_tokens=2, parametrization="hidden", **TEXT)
    assert torch.equal(PrefixTuning(spec, facts).prefix.states, facts.read([1, 2]).hidden)


def test_an_mlp_is_fitted_to_words_in_as_many_steps_as_said(facts):
    def error(steps):
        spec = PrefixTuningSpec(num_virtual_tokens=4, encoder_hidden_size=128, fit_steps=steps, **TEXT)
        prefix = PrefixTuning(spec, facts, generator=seeded())
        assert all(p.grad is None for p in prefix.parameters())
        wanted, effect = facts.read([1, 2, 1, 2]), prefix.effect()
        apart = [effect.keys - wanted.keys, effect.values - wanted.values]
        return torch.stack(apart).square().mean().item()

    assert error(500) < 0.02 * error(0)
    assert error(500) < error(100) < error(0)
    assert error(500) == error(500)


@pytest.mark.parametrize(
    ("lacking", "spec", "reason"),
    [
        ("encode", TEXT, "no tokeniser"),
        ("read", TEXT, "facts do not read"),
        ("project", {"parametrization": "hidden"}, "facts do not project"),
    ],
)
def test_what_the_base_cannot_do_is_named(lacking, spec, reason, facts):
    with pytest.raises(ValueError, match=reason):
        PrefixTuning(PrefixTuningSpec(**spec), replace(facts, **{lacking: None}))


def test_a_text_that_is_no_word_is_refused(facts):
    with pytest.raises(ValueError, match="'ab' is no word"):
        PrefixTuning(PrefixTuningSpec(**TEXT), replace(facts, encode=lambda _: []))


@pytest.mark.parametrize("parametrization", ["kv", "mlp", "hidden"])
def test_peft_is_told_of_a_prefix_without_a_projection(parametrization, facts):
    spec = PrefixTuningSpec(num_virtual_tokens=3, parametrization=parametrization, base_precision="nf4")
    prefix = PrefixTuning(spec, facts)
    assert prefix.peft_config() == {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": 3,
        "token_dim": 32,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": 32,
        "prefix_projection": False,
    }
    assert prefix.base_precision == "nf4"
    assert prefix.penalty().item() == 0
    assert len(prefix.groups()) == 1
