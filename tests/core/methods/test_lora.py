"""LoRA as a method: how it starts, what it counts, what it tells PEFT."""

import math

import pytest
import torch

from core.methods import METHODS
from core.methods.lora import Lora
from core.specs.method import LoraSpec, QLoraSpec


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


def test_gaussian_a_has_a_deviation_of_one_by_rank(new_facts):
    lora = Lora(LoraSpec(r=8, init_lora_weights="gaussian"), new_facts())
    assert torch.cat([a.flatten() for a in lora.a]).std().item() == pytest.approx(1 / 8, rel=0.05)
    assert not any(b.any() for b in lora.b)


def test_a_pattern_names_a_layer_or_its_end_and_the_longest_name_counts(new_facts):
    ranks = {"q_proj": 2, "layers.1.self_attn.q_proj": 3, "proj": 9, "model.layers.0.mlp.up_proj": 5}
    with pytest.raises(ValueError, match=r"rank_pattern names \['proj'\]"):
        Lora(LoraSpec(rank_pattern=ranks), new_facts())
    del ranks["proj"]
    for pattern in (ranks, dict(reversed(ranks.items()))):
        lora = Lora(LoraSpec(r=7, lora_alpha=14, rank_pattern=pattern, alpha_pattern={"up_proj": 10}), new_facts())
        effect = lora.effect()
        found = {name: a.shape[0] for name, a in effect.a.items() if a.shape[0] != 7}
        assert found == {
            "model.layers.0.self_attn.q_proj": 2,
            "model.layers.1.self_attn.q_proj": 3,
            "model.layers.0.mlp.up_proj": 5,
        }
        assert effect.scale["model.layers.0.mlp.up_proj"] == 10 / 5
        assert effect.scale["model.layers.1.mlp.up_proj"] == 10 / 7
        assert effect.scale["model.layers.1.self_attn.q_proj"] == 14 / 3


def test_b_learns_as_much_faster_as_the_spec_says(new_facts):
    lora = Lora(LoraSpec(loraplus_lr_ratio=16, use_dora=True, r=2), new_facts())
    a, b, magnitude = lora.groups()
    assert (a.rate_factor, b.rate_factor, magnitude.rate_factor) == (1, 16, 1)
    assert [*a.parameters, *b.parameters, *magnitude.parameters] == [*lora.parameters()]


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_start_of_the_weight_takes_its_largest_part_and_is_held_against_it(family, name, new_facts):
    facts = new_facts(family)
    lora = Lora(LoraSpec(r=4, lora_alpha=6, init_lora_weights=name), facts)
    effect = lora.effect()
    for site, a, b in zip(lora.sites, lora.a, lora.b, strict=True):
        weight, learned = facts.weight(site.name), b @ a
        u, s, v = torch.linalg.svd(weight)
        best = (u[:, :4] * s[:4]) @ v[:4]
        if name == "pissa":
            assert (1.5 * learned - best).abs().max() < 1e-5
        else:
            assert (b.T @ b - torch.eye(4)).abs().max() < 1e-5
        assert (effect.b[site.name] @ effect.a[site.name]).abs().max() < 1e-5
        assert effect.a[site.name].shape == (8, site.width_in)
    assert sum(p.numel() for p in lora.parameters()) == sum(4 * (s.width_in + s.width_out) for s in lora.sites)


def test_what_cannot_be_is_refused(new_facts):
    facts = new_facts()
    for changes, reason in (
        ({"use_dora": True, "target_modules": ("embed_tokens",)}, "use_dora is of linear layers"),
        ({"init_lora_weights": "olora", "target_modules": ("embed_tokens",)}, "'olora' is of linear layers"),
        ({"init_lora_weights": "pissa", "r": 65}, "no 65 directions"),
    ):
        with pytest.raises(ValueError, match=reason):
            Lora(LoraSpec(**changes), facts)


def test_embeddings_are_a_target_only_where_they_are_named(family, new_facts):
    facts = new_facts(family)
    assert facts.table_site not in Lora(LoraSpec(), facts).sites
    lora = Lora(LoraSpec(r=3, target_modules=(facts.table_site.name.rpartition(".")[2],)), facts)
    (a,), (b,) = lora.a, lora.b
    assert (tuple(a.shape), tuple(b.shape)) == ((3, 99), (64, 3))
    assert not a.any()
    assert 0.7 < b.std() < 1.3
    assert lora.effect().tables == {facts.table_site.name}


def test_qlora_is_lora_on_a_base_in_4_bit(new_facts):
    qlora = METHODS["qlora"](QLoraSpec(r=4), new_facts())
    assert isinstance(qlora, Lora)
    assert qlora.base_precision == "nf4"
    assert qlora.peft_config() == Lora(LoraSpec(r=4), new_facts()).peft_config()
    assert Lora(LoraSpec(base_precision="nf4"), new_facts()).base_precision == "nf4"
    assert Lora(LoraSpec(), new_facts()).base_precision == "bf16"


def test_it_adds_no_penalty_and_a_step_changes_nothing(new_facts):
    lora = Lora(LoraSpec(), new_facts())
    before = [p.clone() for p in lora.parameters()]
    lora.after_step(1, 10)
    assert lora.penalty().item() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, lora.parameters(), strict=True))
