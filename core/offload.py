"""A layer's input waits in host memory while other layers run, and comes back when backward runs the layer again.

Only what torch's checkpointing keeps between the two runs passes here, which is the layer's input; what the second run
keeps is used at once and stays. A GPU's memory is copied to pinned pages, in the order of the stream that computes, so
that neither side is read before it is written. Rajbhandari et al. 2020, arXiv:1910.02054, section 8.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def run_again_from_host(layer: Callable[..., T], *inputs: Tensor) -> T:
    """What the layer makes of these. It is run again in backward, until when they wait on the host."""
    with saved_tensors_hooks(put_away, brought_back):
        found: T = checkpoint(layer, *inputs, use_reentrant=False)
    return found


def put_away(kept: Tensor) -> tuple[torch.device, Tensor]:
    """Where it was, and its copy on the host: pinned, where it comes from a GPU."""
    is_far = kept.device.type == "cuda"
    waiting = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=is_far)
    waiting.copy_(kept, non_blocking=is_far)
    return kept.device, waiting


def brought_back(away: tuple[torch.device, Tensor]) -> Tensor:
    """What was put away, where it was."""
    device, waiting = away
    return waiting.to(device, non_blocking=waiting.is_pinned()) if device.type == "cuda" else waiting
