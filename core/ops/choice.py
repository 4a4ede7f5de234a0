"""Which form of an operation serves: a kernel of core/ops/triton_*.py, or torch's own products. Decided here alone.

Kernels serve where there is a CUDA device, Triton can be imported, and nothing asks for gradients; the trainer keeps
torch's forms, which have backward. Triton comes with CUDA builds of torch; builds for a CPU bring none and need none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """One of each operation that has one."""

    add_segments: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    nf4_product: Callable[..., Tensor]


def kernels_for(device: torch.device) -> Kernels | None:
    """What serves on this device, or None: torch's own products do."""
    return _imported() if has_kernels(device) and not torch.is_grad_enabled() else None


def has_kernels(device: torch.device) -> bool:
    """Whether they serve what asks for no gradients there."""
    return device.type == "cuda" and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed. It is not imported: that takes half a second, and only kernels need it."""
    return find_spec("triton") is not None


@cache
def _imported() -> Kernels:
    from core.ops import triton_decode, triton_low_rank, triton_nf4  # noqa: PLC0415 - not every machine has Triton

    return Kernels(triton_low_rank.add_segments, triton_decode.attend, triton_nf4.product)
