"""Merged is unmerged: a plain Hugging Face model with the adapter in it says what the base model wearing it says."""

from dataclasses import replace

import pytest
import torch
from adalora_runs import pruned
from safetensors.torch import load_file
from test_laws import apart
from test_peft_files import ours, theirs
from test_peft_low_rank import asked, stirred
from transformers import AutoModelForCausalLM

from core import merge
from core.base.facts import facts_of
from core.base.nf4 import quantise_linears
from core.model import RoutedModel


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", ["patterns", "dora", "pissa", "embeddings", "adalora"])
def test_merged_is_unmerged(family, kind, tmp_path, *, new_base, new_facts, new_lora):
    facts = new_facts(family)
    method = pruned(facts) if kind == "adalora" else stirred(new_lora(facts, **asked(kind, facts)))
    with torch.no_grad():
        effect = method.effect()
    base = new_base(family)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merge.write(base, effect, tmp_path, dtype=torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    model, whole = RoutedModel(base), theirs(opened(tmp_path))
    assert apart(whole, ours(model, effect)) < 1e-5
    assert apart(whole, ours(model, None)) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_scale_left_out_would_show(family, tmp_path, new_base, new_facts, new_lora):
    effect = stirred(new_lora(new_facts(family))).effect()
    merge.write(new_base(family), replace(effect, scale=dict.fromkeys(effect.a, 1.0)), tmp_path, dtype=torch.float32)
    assert apart(theirs(opened(tmp_path)), ours(RoutedModel(new_base(family)), effect)) > 1e-3


def test_the_sum_is_rounded_once_to_16_bit(tmp_path, new_base, new_facts, new_lora):
    effect = stirred(new_lora(new_facts(), target_modules=("q_proj",))).effect()
    base = new_base()
    merge.write(base, effect, tmp_path)
    tensors = load_file(tmp_path / merge.WEIGHTS)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj"
    expected = base.get_submodule(name).weight + effect.scale[name] * effect.b[name] @ effect.a[name]
    assert torch.equal(tensors[f"{name}.weight"], expected.bfloat16())
    assert opened(tmp_path).dtype == torch.bfloat16


def test_a_tied_head_stays_as_it_was_where_embeddings_were_learned(tmp_path, new_base, new_facts, new_lora):
    lora = stirred(new_lora(new_facts("gemma"), target_modules=("embed_tokens",)))
    base = new_base("gemma")
    merge.write(base, lora.effect(), tmp_path, dtype=torch.float32)
    whole = opened(tmp_path)
    assert torch.equal(whole.lm_head.weight, base.lm_head.weight)
    assert apart(whole.get_input_embeddings().weight, base.lm_head.weight) > 1e-3


def test_a_layer_that_is_not_there_is_named(tmp_path, new_base, new_facts, new_lora):
    effect = new_lora(new_facts("gpt2")).effect()
    with pytest.raises(ValueError, match=r"no layer named \['transformer\.h\.0"):
        merge.write(new_base(), effect, tmp_path)


def in_4_bits(base):
    quantise_linears(base, head=base.get_output_embeddings(), device=base.device, dtype=torch.float32)
    return base


@pytest.mark.parametrize("kind", ["patterns", "dora", "pissa", "embeddings"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_beside_a_base_in_4_bits_it_is_the_dequantised_weight_that_counts(family, kind, tmp_path, new_base, new_lora):
    base = in_4_bits(new_base(family))
    facts = facts_of(base)
    effect = stirred(new_lora(facts, **asked(kind, facts))).effect()
    merge.write(base, effect, tmp_path / "4 bit", dtype=torch.float32)
    merge.write(new_base(family), effect, tmp_path / "16 bit", dtype=torch.float32)
    model = RoutedModel(base)
    here = ours(model, effect)
    assert apart(theirs(opened(tmp_path / "4 bit")), here) < 1e-5
    assert apart(ours(model, model.resident(replace(effect, norm={}))), here) < 1e-5
    # The control: added to the weight as it was before it was quantised, it is another model.
    assert apart(theirs(opened(tmp_path / "16 bit")), here) > 1e-3
