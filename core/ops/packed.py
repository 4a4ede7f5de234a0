"""Frozen weights laid out once as a CPU's products read them, for batches of few tokens.

A plain product lays its weight out anew at every call, which for few tokens costs as much as it saves. Of all layers of
SmolLM2-135M in fp32, one thread, plain against packed: 71 and 44 ms for 2 tokens, 80 and 59 for 8, 105 and 81 for 16,
142 and 120 for 32; one token and 64 take as long either way. The packed weights are a second copy.
"""

import torch
from torch import Tensor

FEW = 64  # tokens up to which the packed product is the faster one


def is_packable(weight: Tensor) -> bool:
    """Whether a weight [O, I] can be packed here: fp32, on a CPU, where torch has oneDNN."""
    has_one_dnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and has_one_dnn


def pack(weight: Tensor) -> Tensor:
    """A weight [O, I] laid out for 16 tokens or so. Only packed_product can read it."""
    with torch.inference_mode(mode=False), torch.no_grad():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)  # noqa: SLF001 - torch's own way
        return packed


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + bias, of x [..., I] and the packed form of W [O, I]: [..., O]. Without gradients.

    Semantics: torch.nn.functional.linear(x, weight, bias).
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # noqa: SLF001
    return y
