"""The linear layers of a base model in 4 bits: NF4, blocks of 64, scales quantised too (core/ops/nf4.py says how).

The bits are those of bitsandbytes; its layer is not used. On CPUs with AVX512-BF16 that one repacks its weight in
place when it is evaluated, and computes in bf16 from then on, so that the bytes of a frozen base change and a row is
served otherwise than it was trained. Here a layer is, in training and serving alike, its weight dequantised and then
a product, and what is stored never changes.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.ops import choice
from core.ops.nf4 import BLOCK, GROUP, can_multiply

TYPE = "nf4"
_STORED = ("packed", "scales", "peaks", "offset")


class Linear4bit(nn.Module):
    """A frozen linear layer of I inputs and O outputs whose weight [O, I] is kept in 4 bits."""

    packed: Tensor  # [ceil(O I / 2), 1] uint8
    scales: Tensor  # [C] uint8, C = ceil(O I / 64)
    peaks: Tensor  # [ceil(C / 256)] fp32
    offset: Tensor  # [] fp32
    levels: Tensor  # [16] fp32
    scale_map: Tensor  # [256] fp32

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, is_conv1d: bool = False) -> None:
        """Quantise weight [O, I], where it is; the layer computes in dtype. is_conv1d: what it stands for was one."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.is_conv1d = dtype, is_conv1d
        packed, state = _bitsandbytes().quantize_4bit(
            weight.detach().contiguous(), blocksize=BLOCK, quant_type=TYPE, compress_statistics=True
        )
        parts = {"packed": packed, "scales": state.absmax, "peaks": state.state2.absmax, "offset": state.offset}
        for name, part in (parts | {"levels": state.code, "scale_map": state.state2.code}).items():
            self.register_buffer(name, part)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, I] to […, O]. Nothing of the weight's size is kept for backward."""
        flat = x.reshape(-1, self.in_features)
        if (kernels := choice.kernels_for(x.device)) is not None and can_multiply(len(flat), self.in_features):
            parts = (self.packed, self.scales, self.peaks, self.offset, self.levels, self.scale_map)
            return kernels.nf4_product(flat, parts, self.bias, self.out_features).view(*x.shape[:-1], -1)
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that its bits stand for: [O, I], in dtype or what the layer computes in; a new tensor."""
        bnb = _bitsandbytes()
        nested = bnb.QuantState(absmax=self.peaks, blocksize=GROUP, code=self.scale_map, dtype=torch.float32)
        state = bnb.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.levels,
            blocksize=BLOCK,
            quant_type=TYPE,
            dtype=dtype or self.dtype,
            offset=self.offset,
            state2=nested,
        )
        weight: Tensor = bnb.dequantize_4bit(self.packed, state)
        return weight

    def stored(self) -> dict[str, Tensor]:
        """What the weight is kept in, but for the two maps, which are constants."""
        return {name: getattr(self, name) for name in _STORED}

    def extra_repr(self) -> str:
        """As nn.Linear's."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    """X Wᵀ + b. Backward dequantises the weight anew, so that the graph of a deep model holds no weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear4bit) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.layer = layer
        return nn.functional.linear(x, layer.dense(), layer.bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None]:  # noqa: ANN401 - torch's own
        return (upstream @ ctx.layer.dense() if ctx.needs_input_grad[0] else None), None


def quantise_linears(model: nn.Module, *, head: nn.Module | None, device: torch.device, dtype: torch.dtype) -> None:
    """Puts a Linear4bit in the place of every linear layer but the head. One by one: the device never holds all in 16.

    Weights are rounded to bf16 first, so that the bits are the same whatever the layers compute in.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    for name, module in found.items():
        weight, is_conv1d = module.weight.detach(), isinstance(module, Conv1D)
        rounded = (weight.T if is_conv1d else weight).to(device, torch.bfloat16)
        bias = None if module.bias is None else module.bias.to(device)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Linear4bit(rounded, bias, dtype=dtype, is_conv1d=is_conv1d))


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a linear layer of any kind: fp32 [O, I], not to be changed. Raises TypeError for other modules."""
    match module:
        case Linear4bit():
            return module.dense(torch.float32)
        case nn.Linear():
            return module.weight.detach().float()
        case Conv1D():
            return module.weight.detach().float().T
    raise TypeError(f"{type(module).__name__} is no linear layer")


def checksum(model: nn.Module) -> str | None:
    """The sha256 of all that is stored in 4 bits, in the order of the model's layers; None where nothing is.

    Their names are left out: a RoutedModel puts its layers about them.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if not layers:
        return None
    found = hashlib.sha256()
    for layer in layers:
        for part in layer.stored().values():
            found.update(part.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _bitsandbytes() -> Any:  # noqa: ANN401 - it is not typed
    # Loaded by the first 4-bit layer: it takes seconds, and a 16-bit base has no use for it.
    import bitsandbytes.functional  # noqa: PLC0415

    return bitsandbytes.functional
