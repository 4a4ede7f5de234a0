"""What becomes of a turn for which memory is not enough: smaller micro-batches. Arithmetic, and how a lack is told."""

from collections.abc import Sequence

import torch

FEWEST_TOKENS = 64  # of one forward: with fewer there is nothing left to halve
MOST_HALVINGS = 4  # in one process: past that, or where nothing can be halved, a fresh process may fare better


def is_lack_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might have passed."""
    # On a CPU torch raises a plain RuntimeError, told from others by its words alone.
    is_refused_on_cpu = "DefaultCPUAllocator: can't allocate" in str(error)
    return is_refused_on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def smaller(batches: Sequence[Sequence[int]]) -> int | None:
    """Tokens of a forward after a lack of memory: half of the largest micro-batch. batches: tokens of each one's parts.

    None where no micro-batch would become smaller: the largest is one part, or is at the floor already.
    """
    largest = max(batches, key=sum)
    tokens = max(FEWEST_TOKENS, sum(largest) // 2)
    return tokens if len(largest) > 1 and tokens < sum(largest) else None
