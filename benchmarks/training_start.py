"""What both sides of benchmarks/training.py draw alike, so that their losses can be compared. Knows torch alone."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

WIDTH, WORDS = 576, 49152  # of SmolLM2-135M
LEARNED = 0.55  # share of the head's tokens


def started(site: str, shape: tuple[int, ...]) -> Tensor:
    """A [R, I] of one layer: Kaiming-uniform as LoRA's authors start it, by the layer's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(site.encode()))
    bound = shape[1] ** -0.5
    return torch.rand(shape, generator=generator).mul_(2 * bound).sub_(bound)


def head_inputs(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden [N, H], a head's weight [V, H], ids [N], learned [N]: as large as SmolLM2's."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(WORDS, WIDTH, generator=generator) * 0.05).to(dtype)
    hidden = torch.randn(tokens, WIDTH, generator=generator).to(dtype)
    ids = torch.randint(0, WORDS, (tokens,), generator=generator)
    learned = torch.rand(tokens, generator=generator) < LEARNED
    learned[0] = False
    return hidden, weight, ids, learned


def peak_kib() -> int:
    """The most that this process ever held. What getrusage says begins with the peak of the process that started it."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(said["VmHWM"].split()[0])
