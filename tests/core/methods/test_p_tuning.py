"""P-tuning as a method: its encoder, how it starts, what it counts, what it tells PEFT."""

from dataclasses import replace

import pytest
import torch

from core.methods import METHODS
from core.methods.p_tuning import PTuning
from core.specs.method import PTuningSpec
from core.specs.template import Layout

TEMPLATE = "{v:2}is{v:1}{input}so{target}"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def facts(new_facts):
    """A letter is a word."""
    return replace(new_facts(), encode=lambda text: [ord(c) - 97 for c in text])


def method(facts, *, seed=0, **spec):
    given = {"template": TEMPLATE, "encoder_reparameterization_type": "LSTM"} | spec
    return PTuning(PTuningSpec(**given), facts, generator=seeded(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_it_is_among_the_methods_and_says_where_its_virtual_tokens_stand(facts):
    assert METHODS["p_tuning"] is PTuning
    effect = method(facts).effect()
    assert effect.prompt.shape == (3, 64)
    assert effect.layout == Layout((-1, -2, 8, 18, -3), (18, 14))


def test_at_half_the_width_the_encoder_has_the_shapes_of_the_authors_lama_code(facts):
    """Which are: nn.LSTM(H, H / 2, num_layers=2, bidirectional=True), Linear(H, H), ReLU, Linear(H, H)."""
    lstm = torch.nn.LSTM(64, 32, num_layers=2, bidirectional=True)
    assert count(method(facts)) == 3 * 64 + count(lstm) + 2 * (64 * 64 + 64)
    assert count(method(facts, encoder_reparameterization_type="MLP")) == 3 * 64 + 2 * (64 * 64 + 64)
    wide = torch.nn.LSTM(64, 10, num_layers=3, bidirectional=True)
    assert count(method(facts, encoder_hidden_size=10, encoder_num_layers=3)) == 3 * 64 + count(wide) + (
        (20 * 20 + 20) + (20 * 64 + 64)
    )


def test_layers_one_upon_another_are_torchs_own_lstm_of_several(facts):
    ours = method(facts).encoder
    theirs = torch.nn.LSTM(64, 32, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for name, parameter in layer.named_parameters():
                theirs.get_parameter(name.replace("_l0", f"_l{number}")).copy_(parameter)
    seeds = torch.randn(5, 64)
    expected = ours.last(ours.first(theirs(seeds)[0]).relu())
    assert (ours(seeds, lambda x, _: x) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("encoder", ["LSTM", "MLP"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_it_starts_as_large_as_the_bases_own_embeddings(encoder, scale, facts):
    large = replace(facts, table=facts.table * scale)
    found = method(large, encoder_reparameterization_type=encoder).effect().prompt
    assert found.square().mean().sqrt().item() == pytest.approx(large.table.square().mean().sqrt().item(), rel=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.1 * found.abs().max()


@pytest.mark.parametrize("encoder", ["LSTM", "MLP"])
def test_the_same_generator_starts_the_same_encoder(encoder, facts):
    first, again, other = (
        method(facts, seed=seed, encoder_reparameterization_type=encoder).effect().prompt for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_lstm_lets_every_virtual_token_see_every_other_and_an_mlp_none(facts):
    for encoder, sees in (("LSTM", True), ("MLP", False)):
        made = method(facts, encoder_reparameterization_type=encoder)
        before = made.effect().prompt
        with torch.no_grad():
            made.seeds[2] += 1
        changed = (made.effect().prompt != before).any(1).tolist()
        assert changed == [sees, sees, True]


def test_dropout_has_one_mask_a_step_and_none_without_gradients(facts):
    made, plain = method(facts, encoder_dropout=0.5), method(facts)
    first, again = made.effect().prompt, made.effect().prompt
    assert torch.equal(first, again)
    made.after_step(1, 10)
    assert not torch.equal(first, made.effect().prompt)
    made.after_step(0, 10)
    assert torch.equal(first, made.effect().prompt)
    with torch.no_grad():
        assert torch.equal(made.effect().prompt, plain.effect().prompt)
    assert not torch.equal(first, plain.effect().prompt)


def test_dropout_keeps_the_mean_and_drops_its_share(facts):
    made = method(facts, encoder_dropout=0.25)
    found = made._dropped(torch.ones(400, 100), 1)
    assert sorted(found.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(found, made._dropped(torch.ones(400, 100), 2))


def test_words_without_a_tokeniser_are_refused_and_virtual_tokens_alone_need_none(facts):
    bare = replace(facts, encode=None)
    with pytest.raises(ValueError, match=r"has words, 'is', .* no tokeniser"):
        method(bare)
    assert method(bare, template="{v:3}{input}{target}").effect().layout == Layout((-1, -2, -3), ())


def test_peft_is_told_of_reserved_ids_that_are_neither_anchors_nor_special(facts):
    taken = replace(facts, encode=lambda _: [98, 95], specials=frozenset({97}))
    config = method(taken, base_precision="nf4").peft_config()
    assert config == {
        "peft_type": "TRAINABLE_TOKENS",
        "token_indices": [93, 94, 96],
        "target_modules": ["model.embed_tokens"],
        "init_weights": True,
        "graft_template": {"template": TEMPLATE, "table_scale": 1.0},
    }
    assert method(taken, base_precision="nf4").base_precision == "nf4"


@pytest.mark.parametrize("template", ["{v:3}{input}{target}", "{v:1}{v:2}{input}{target}"])
def test_peft_is_told_of_a_prompt_where_it_stands_in_front(template, facts):
    config = method(facts, template=template).peft_config()
    assert (config["peft_type"], config["num_virtual_tokens"], config["token_dim"]) == ("PROMPT_TUNING", 3, 64)
