"""A base model in NF4: the same layers with 4-bit weights, frozen bit for bit, and gradients that pass through."""

import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit as Theirs
from bitsandbytes.nn import Params4bit
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from core.base.catalogue import entry
from core.base.facts import facts_of, linears_of
from core.base.load import open_base
from core.base.nf4 import Linear4bit, checksum, dense_weight, quantise_linears
from core.model import RoutedModel, Rows
from core.ops import nf4
from core.routing import Routing
from core.settings import EMBEDDED_BASE_MODELS

SHAPES = [(64, 64), (96, 40), (33, 64), (5, 7), (8, 8), (128, 200)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(weight, bias=None, dtype=torch.float32):
    return Linear4bit(weight, bias, dtype=dtype)


def in_nf4(model, dtype=torch.float32):
    quantise_linears(model, head=model.get_output_embeddings(), device=torch.device("cpu"), dtype=dtype)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_its_weight_dequantised_by_the_codec_one_reads_and_then_a_product(shape):
    weight, bias, x = normal(*shape), normal(shape[0], seed=1), normal(3, shape[1], seed=2)
    layer = layer_of(weight, bias)
    expected = nf4.dequantise(nf4.quantise(weight))

    assert torch.equal(layer.packed.flatten(), nf4.quantise(weight).packed)
    # An 8-bit code of a scale may be the neighbour of the one expected: that is worth a hundredth of the scale.
    assert torch.allclose(layer.dense(), expected, atol=0.01 * float(weight.abs().max()))
    assert torch.equal(layer(x), nn.functional.linear(x, layer.dense(), bias))
    stored = nf4.Quantised(layer.packed.flatten(), layer.scales, layer.peaks, layer.offset, torch.Size(shape))
    assert torch.allclose(layer.dense(), nf4.dequantise(stored), atol=1e-6)


def test_it_dequantises_to_bf16_by_rounding_the_fp32_value():
    layer = layer_of(normal(96, 64), dtype=torch.bfloat16)
    stored = nf4.Quantised(layer.packed.flatten(), layer.scales, layer.peaks, layer.offset, torch.Size((96, 64)))
    assert torch.equal(layer.dense(), layer.dense(torch.float32).bfloat16())
    assert torch.allclose(layer.dense(torch.float32), nf4.dequantise(stored), atol=1e-6)


def test_the_stored_bytes_stay_as_they_are_in_training_and_in_evaluation():
    layer = layer_of(normal(64, 128), dtype=torch.bfloat16)
    before = {name: part.clone() for name, part in layer.stored().items()}
    expected = None
    for is_training in (True, False, True, False):
        layer.train(is_training)
        for grad in (True, False):
            x = normal(2, 128, seed=3).bfloat16().requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                y = layer(x)
            if grad:
                y.sum().backward()
            expected = y.detach() if expected is None else expected
            assert torch.equal(y, expected)
    assert all(torch.equal(part, before[name]) for name, part in layer.stored().items())


def test_it_equals_the_layer_of_bitsandbytes_in_training_mode():
    weight, x = normal(64, 128), normal(4, 128, seed=1).requires_grad_()
    theirs = Theirs(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True)
    theirs.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    theirs = theirs.to("cpu").train()
    mine = layer_of(weight)

    assert torch.allclose(mine(x), theirs(x), atol=1e-5)
    [gradient] = torch.autograd.grad(mine(x).sum(), x)
    [expected] = torch.autograd.grad(theirs(x).sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_the_gradient_of_x_passes_through_the_dequantised_weight_and_none_of_it_is_kept():
    layer, x = layer_of(normal(512, 512)), normal(2, 512, seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(x)
        (y * y).sum().backward()
    assert max(kept) <= y.numel()
    assert torch.allclose(x.grad, 2 * y.detach() @ layer.dense(), rtol=1e-4, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_stored_bits_a_parameter_are_those_of_the_paper():
    layer = layer_of(normal(1024, 1024))
    bits = 8 * sum(part.numel() * part.element_size() for name, part in layer.stored().items() if name != "offset")
    assert bits / 1024**2 == 4.126953125


@pytest.mark.smollm2
@pytest.mark.xdist_group("smollm2")
def test_the_linear_layers_of_the_real_base_take_4_127_bits_a_parameter():
    name = "smollm2-135m-instruct"
    how = {"cache_dir": Path(".cache/tests"), "device": "cpu", "precision": "fp32"}
    base = open_base(entry(EMBEDDED_BASE_MODELS, name), base_precision="nf4", **how)
    layers = list(linears_of(base.model).values())
    bits = 8 * sum(part.numel() * part.element_size() for layer in layers for part in layer.stored().values())
    parameters = sum(layer.in_features * layer.out_features for layer in layers)
    assert parameters == 106_168_320
    assert bits / parameters == pytest.approx(4.127, abs=0.0005)


def test_only_the_linear_layers_are_quantised_the_head_is_not(new_base, family):
    model, plain = in_nf4(new_base(family)), new_base(family)
    found, expected = facts_of(model), facts_of(plain)

    assert found.sites == expected.sites
    assert all(isinstance(module, Linear4bit) for module in linears_of(model).values())
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    assert torch.equal(found.table, expected.table)


def test_a_conv1d_computes_with_the_quantised_transpose_of_its_weight():
    torch.manual_seed(0)
    conv = Conv1D(96, 64)
    wrapper = nn.ModuleDict({"conv": copy.deepcopy(conv)})
    quantise_linears(wrapper, head=None, device=torch.device("cpu"), dtype=torch.float32)
    layer, x = wrapper["conv"], normal(3, 64)

    assert (layer.in_features, layer.out_features, layer.is_conv1d) == (64, 96, True)
    assert torch.allclose(layer(x), conv(x), atol=0.1)
    with torch.no_grad():
        conv.weight.copy_(dense_weight(layer).T)
    assert torch.allclose(layer(x), conv(x), atol=1e-6)


def test_the_weight_of_any_linear_layer_is_told_as_outputs_by_inputs():
    linear, conv = nn.Linear(5, 3), Conv1D(3, 5)
    assert torch.equal(dense_weight(linear), linear.weight)
    assert torch.equal(dense_weight(conv), conv.weight.T)
    assert dense_weight(layer_of(normal(3, 5), dtype=torch.bfloat16)).dtype is torch.float32
    with pytest.raises(TypeError, match="Embedding"):
        dense_weight(nn.Embedding(2, 2))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_one_forward_is_that_of_the_dequantised_model(new_base, family, new_lora, checkpointing):
    quantised = in_nf4(new_base(family))
    dense = new_base(family)
    for name, module in linears_of(dense).items():
        weight = dense_weight(quantised.get_submodule(name))
        with torch.no_grad():
            module.weight.copy_(weight.T if isinstance(module, Conv1D) else weight)
    before = checksum(quantised)
    found = learned(quantised, new_lora, checkpointing=checkpointing)
    expected = learned(dense, new_lora, checkpointing=False)

    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, expected, strict=True))
    assert checksum(quantised) == before


def learned(base, new_lora, *, checkpointing):
    """Hidden states, then the gradients of a LoRA."""
    lora = new_lora(facts_of(base))
    model = RoutedModel(base, checkpointing=checkpointing)
    rows = Rows.of([[5, 9, 30, 4], [7, 8]])
    with model.wearing(Routing.of_rows([lora.effect()] * 2)):
        hidden = model(rows)
        hidden.square().sum().backward()
    return [hidden.detach(), *(parameter.grad for parameter in lora.parameters())]


def test_an_adapter_is_checked_against_layers_in_4_bits(new_base, new_lora):
    model = RoutedModel(in_nf4(new_base("gpt2")))
    model.check(new_lora(facts_of(new_base("gpt2"))).effect())
    with pytest.raises(ValueError, match="no layer named"):
        model.check(new_lora(facts_of(new_base("llama"))).effect())


def test_an_nf4_base_is_opened_frozen_and_says_how_it_is_kept(folder, entry_of, tmp_path):
    plain = open_base(entry_of(folder), cache_dir=tmp_path / "cache", device="cpu", precision="fp32")
    base = open_base(
        entry_of(folder), cache_dir=tmp_path / "cache", device="cpu", precision="fp32", base_precision="nf4"
    )
    told = {"type": "nf4", "block": 64, "double_quant": True, "compute_dtype": "fp32"}

    assert (plain.base_precision, plain.quantisation) == ("bf16", None)
    assert base.quantisation == told | {"base_sha256": checksum(base.model)}
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.facts.sites, base.revision) == (plain.facts.sites, plain.revision)
    ids = torch.tensor([[5, 9, 200]])
    assert not torch.equal(base.model(ids).logits, plain.model(ids).logits)


def test_the_bits_are_the_same_whatever_is_computed_in(folder, entry_of, tmp_path):
    found = {
        precision: open_base(
            entry_of(folder), cache_dir=tmp_path, device="cpu", precision=precision, base_precision="nf4"
        )
        for precision in ("fp32", "bf16")
    }
    assert checksum(found["fp32"].model) == checksum(found["bf16"].model)
    assert found["bf16"].quantisation["compute_dtype"] == "bf16"


def test_a_changed_bit_changes_the_checksum():
    torch.manual_seed(0)
    model = in_nf4(GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50, n_positions=16)))
    before = checksum(model)
    next(m for m in model.modules() if isinstance(m, Linear4bit)).packed[0] ^= 1
    assert checksum(model) != before
