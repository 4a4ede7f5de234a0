"""Frozen parts of known families in a form that keeps less for backward: RMS norms, and blocks of SwiGLU.

Of what a Llama keeps for one token more than half is four wide tensors of the SwiGLU block: gate, up, silu(gate) and
their product. Two of them follow from the other two for a few elementary steps, a hundredth of the block's products.
Families not named here, and forwards without gradients, go as they are.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from core.ops.frugal import gated, rms_norm

Norm = LlamaRMSNorm | MistralRMSNorm | Phi3RMSNorm | Qwen2RMSNorm | Qwen3RMSNorm
Block = LlamaMLP | MistralMLP | Qwen2MLP | Qwen3MLP


class FrugalNorm(nn.Module):
    """Stands in the place of a Norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        weight, epsilon = norm.weight, norm.variance_epsilon
        assert isinstance(weight, nn.Parameter)
        assert isinstance(epsilon, float)
        self.weight, self.variance_epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        return rms_norm(x, self.weight, self.variance_epsilon)


class FrugalBlock(nn.Module):
    """Stands in the place of a Block."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, block: nn.Module, *, checkpointing: bool) -> None:
        """checkpointing: all is reckoned again anyway, by who keeps the block's input."""
        super().__init__()
        for name in ("gate_proj", "up_proj", "down_proj"):
            self.add_module(name, block.get_submodule(name))
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        product = gated(gate, up)
        is_kept = self.checkpointing or not product.requires_grad
        with nullcontext() if is_kept else _reckoned_again(product, gate.detach(), up.detach()):
            y: Tensor = self.down_proj(product)
        return y


def make_frugal(base: nn.Module, *, checkpointing: bool) -> None:
    """Puts the frugal form in the place of every part that has one."""
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Norm):
                setattr(parent, name, FrugalNorm(child))
            elif isinstance(child, Block) and isinstance(child.act_fn, SiLUActivation | nn.SiLU):
                setattr(parent, name, FrugalBlock(child, checkpointing=checkpointing))


def _reckoned_again(product: Tensor, gate: Tensor, up: Tensor) -> saved_tensors_hooks:
    """Inside this, who keeps product for backward keeps its shape alone: it is made anew from gate and up."""
    place, count = product.data_ptr(), product.numel()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if tensor.data_ptr() == place and tensor.numel() == count else tensor

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else (silu(gate) * up).view(kept)

    return saved_tensors_hooks(pack, unpack)
