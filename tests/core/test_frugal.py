"""Parts that keep less for backward say what the models' own say, and have the same gradients."""

import pytest
import torch
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from core.frugal import FrugalBlock, FrugalNorm, make_frugal
from core.model import RoutedModel
from core.ops import frugal


def plain_norm(x, weight, epsilon):
    return torch.stack([weight * (x[n] / (x[n].square().mean() + epsilon) ** 0.5) for n in range(len(x))])


def plain_gated(gate, up):
    return torch.stack([g / (1 + (-g).exp()) * u for g, u in zip(gate.flatten(), up.flatten(), strict=True)]).view_as(
        gate
    )


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_the_norm_equals_its_semantics_in_value_and_gradient():
    x, weight = drawn(5, 8), drawn(8, seed=1).detach()
    assert torch.autograd.gradcheck(lambda x: frugal.rms_norm(x, weight, 1e-5), [x])
    torch.testing.assert_close(frugal.rms_norm(x, weight, 1e-5), plain_norm(x, weight, 1e-5))
    assert not torch.allclose(frugal.rms_norm(x, weight, 1e-5), plain_norm(x, weight, 1.0))


def test_the_gated_product_equals_its_semantics_in_value_and_gradient():
    gate, up = drawn(5, 8), drawn(5, 8, seed=1)
    assert torch.autograd.gradcheck(frugal.gated, [gate, up])
    torch.testing.assert_close(frugal.gated(gate, up), plain_gated(gate, up))
    assert not torch.allclose(frugal.gated(up, gate), plain_gated(gate, up))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_changes_no_bit_of_what_the_models_own_says(new_base, dtype):
    norm = next(m for m in new_base(dtype=dtype).modules() if isinstance(m, LlamaRMSNorm))
    x = torch.randn(1, 7, len(norm.weight)).to(dtype)
    assert torch.equal(FrugalNorm(norm)(x.clone().requires_grad_()), norm(x))
    with torch.no_grad():
        assert torch.equal(FrugalNorm(norm)(x), norm(x))


def block_and_input(new_base):
    block = next(m for m in new_base().modules() if isinstance(m, LlamaMLP))
    return block, torch.randn(1, 7, block.hidden_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_block_equals_the_models_own_in_value_and_gradient(new_base, checkpointing):
    block, x = block_and_input(new_base)
    found = []
    for module in (block, FrugalBlock(block, checkpointing=checkpointing)):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        weights = [p for p in block.parameters() if p.dim() > 1]
        found.append([y, *torch.autograd.grad(y.sin().sum(), [leaf, *weights])])
    assert torch.equal(found[0][0], found[1][0])
    for plain, here in zip(*found, strict=True):
        torch.testing.assert_close(here, plain)


def wide_tensors_kept(module, x, width):
    kept = {}

    def pack(tensor):
        if tensor.numel() == 7 * width:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.clone().requires_grad_())
    return len(kept), y


def test_a_block_keeps_two_wide_tensors_where_the_models_own_keeps_four(new_base):
    block, x = block_and_input(new_base)
    width = block.intermediate_size
    assert wide_tensors_kept(FrugalBlock(block, checkpointing=False), x, width)[0] == 2
    assert wide_tensors_kept(block, x, width)[0] == 4


def test_every_norm_and_block_of_a_llama_is_made_frugal_and_an_unknown_one_is_left(new_base, llama):
    kinds = {type(module).__name__ for module in llama.base.modules()}
    assert {"FrugalNorm", "FrugalBlock"} <= kinds
    assert not kinds & {"LlamaRMSNorm", "LlamaMLP"}
    gelu = new_base()
    for module in gelu.modules():
        if isinstance(module, LlamaMLP):
            module.act_fn = torch.nn.GELU()
    make_frugal(gelu, checkpointing=False)
    assert any(isinstance(module, LlamaMLP) for module in gelu.modules())


def test_reckoning_a_product_again_from_another_gate_would_be_seen(new_base, monkeypatch):
    block, x = block_and_input(new_base)
    block.down_proj.weight.requires_grad_()
    grads = []
    for spoiled in (False, True):
        if spoiled:
            monkeypatch.setattr("core.frugal.silu", lambda gate: silu(gate + 1))
        y = FrugalBlock(block, checkpointing=False)(x.clone().requires_grad_())
        grads.append(torch.autograd.grad(y.sum(), block.down_proj.weight)[0])
    assert not torch.allclose(*grads)


def test_a_routed_model_computes_what_its_base_does_with_gradients_and_without(new_base):
    found = []
    for is_tracked in (True, False):
        model = RoutedModel(new_base())
        with torch.set_grad_enabled(is_tracked), model.bare((0, 6)):
            layer = model.base.base_model.layers[0].mlp
            found.append(layer(torch.linspace(-1, 1, 6 * model.base.config.hidden_size).view(1, 6, -1)))
    assert torch.equal(*found)
