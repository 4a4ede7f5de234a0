"""How a low-rank pair begins: A [R, I] and B [O, R] of one linear layer.

Two starts leave the layer as it was, since B is zero. Two others are of the weight itself (PiSSA: Meng et al. 2024,
arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775): their B A is not zero, so who takes them must hold what
is learned against it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Wanted:
    """A pair to make."""

    rank: int
    width_in: int
    width_out: int


def kaiming(wanted: Wanted, generator: torch.Generator | None) -> Pair:
    """A uniform within 1 / sqrt(I), as the authors' code; B zero."""
    a = torch.empty(wanted.rank, wanted.width_in)
    return nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator), torch.zeros(wanted.width_out, wanted.rank)


def gaussian(wanted: Wanted, generator: torch.Generator | None) -> Pair:
    """A normal of deviation 1 / R, as PEFT's; B zero."""
    a = torch.empty(wanted.rank, wanted.width_in).normal_(0, 1 / wanted.rank, generator=generator)
    return a, torch.zeros(wanted.width_out, wanted.rank)


def of_table(wanted: Wanted, generator: torch.Generator | None) -> Pair:
    """Of embeddings: A zero, B normal. A column of A is read, not multiplied, so it is A that may start at nothing."""
    b = torch.empty(wanted.width_out, wanted.rank).normal_(0, 1, generator=generator)
    return torch.zeros(wanted.rank, wanted.width_in), b


def pissa(weight: Tensor, rank: int, scale: float) -> Pair:
    """The best approximation of weight [O, I] by this rank is scale * B A: its largest singular triplets."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def olora(weight: Tensor, rank: int, scale: float) -> Pair:  # noqa: ARG001 - PEFT's start does not heed its scale
    """B is orthonormal: the first columns of Q, A the first rows of R, where weight [O, I] = Q R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), q[:, :rank].contiguous()


OF_NOTHING: dict[str, Callable[[Wanted, torch.Generator | None], Pair]] = {"kaiming": kaiming, "gaussian": gaussian}
OF_WEIGHT: dict[str, Callable[[Tensor, int, float], Pair]] = {"pissa": pissa, "olora": olora}
