"""How much memory a trainer child has had in use."""

import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """The most so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
