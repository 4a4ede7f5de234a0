import pytest
import torch

from core.base.facts import Site, facts_of
from core.base.words import Words


def test_a_llamas_facts_are_its_configs(model, tokenizer):
    facts = facts_of(model, tokenizer)
    assert (facts.hidden, facts.layers, facts.kv_heads, facts.head_width) == (32, 2, 2, 8)
    assert (facts.context, facts.vocabulary) == (128, len(tokenizer))
    assert facts.table.shape == (len(tokenizer), 32)
    assert torch.equal(facts.table, model.model.embed_tokens.weight)
    assert not facts.table.requires_grad
    assert facts_of(model).encode is None


def test_a_methods_words_are_encoded_as_text_within_a_row_never_as_special_tokens(model, tokenizer):
    encode = facts_of(model, tokenizer).encode
    assert encode(" the<|im_end|>") == Words(tokenizer).encode([" the<|im_end|>"], is_first=False)[0]
    assert 2 not in encode(" the<|im_end|>")
    # Negative control: the tokeniser itself finds its special token in it.
    assert tokenizer.encode(" the<|im_end|>", add_special_tokens=False)[-1] == 2


def test_every_linear_layer_but_the_output_head_is_a_site(model):
    facts = facts_of(model)
    assert len(facts.sites) == 7 * 2
    assert facts.sites[1] == Site("model.layers.0.self_attn.k_proj", 32, 16)
    assert not any(site.name == "lm_head" for site in facts.sites)
    assert facts.sites_named("all-linear") == facts.sites


def test_gpt2s_layers_keep_their_weights_the_other_way_round(new_base):
    facts = facts_of(new_base("gpt2"))
    attention, *_, up, down = (site for site in facts.sites if ".0." in site.name)
    assert attention == Site("transformer.h.0.attn.c_attn", 64, 192, is_conv1d=True)
    assert (up.width_in, up.width_out, down.width_in, down.width_out) == (64, 256, 256, 64)
    assert (facts.kv_heads, facts.head_width, facts.context) == (4, 16, 64)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3", "mistral", "phi3", "qwen2", "qwen3", "gpt_neox"])
def test_widths_are_those_of_the_weights_in_every_family(new_base, family):
    base = new_base(family)
    facts = facts_of(base)
    modules = dict(base.named_modules())
    head = base.get_output_embeddings()
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear) and module is not head}
    assert {site.name for site in facts.sites} == linear
    assert all((site.width_out, site.width_in) == tuple(modules[site.name].weight.shape) for site in facts.sites)
    assert facts.layers == 2


def test_sites_are_named_by_the_last_parts_of_their_names(model):
    facts = facts_of(model)
    assert [site.name for site in facts.sites_named(["q_proj", "layers.1.mlp.up_proj"])] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert facts.sites_named(("mlp.down_proj", "down_proj")) == facts.sites_named(("down_proj",))


@pytest.mark.parametrize("names", [["q_proj", "c_attn", "proj"], ["lm_head"], ["embed_tokens"], [""]])
def test_an_unknown_site_is_answered_with_those_that_are_known(model, names):
    known = r"\['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'\]"
    with pytest.raises(ValueError, match=known) as caught:
        facts_of(model).sites_named(names)
    assert "'q_proj'," not in str(caught.value).partition(";")[0]


def test_no_names_name_no_sites(model):
    with pytest.raises(ValueError, match="no layer named"):
        facts_of(model).sites_named([])
