"""Tokens cut into blocks that wear one adapter, and where its rows stand in the pool.

What core/ops/triton_low_rank.py reads: made once a step, read by every layer. Knows no kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

PAGE = 4  # rows of the pool that belong to one adapter
NARROW = 1  # tokens of a block where few share an adapter: each reads its adapter's rows by itself
WIDE = 16  # elsewhere; a matrix unit takes no fewer

Worn = TypeVar("Worn")


@dataclass(frozen=True, eq=False)
class Segments:
    """M blocks of C tokens at most. Every token stands in one block at most; in none, it wears nothing."""

    tokens: Tensor  # [M, C] int32; -1 fills a block that has fewer
    pages: Tensor  # [M, W] int32: the pages of the block's adapter, in the order of its rows
    counts: Tensor  # [M] int32: how many of the W are; 0 is the bare base

    @property
    def size(self) -> tuple[int, int, int]:
        """M, C and W."""
        return self.tokens.shape[0], self.tokens.shape[1], self.pages.shape[1]


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that read one x, and give O outputs side by side: G of them, those that an adapter of the pool changes."""

    a: Tensor  # [P, G, PAGE, I]
    b: Tensor  # [P * PAGE, O]
    bounds: Tensor  # [2, G] int32: where the columns of each member begin, and where they end
    widest: int  # columns of the widest member


def blocks_of(owned: Sequence[tuple[Worn, Sequence[int]]], width: int) -> list[tuple[Worn, list[int]]]:
    """What each adapter's tokens come to in blocks of so many."""
    return [
        (worn, list(tokens[start : start + width])) for worn, tokens in owned for start in range(0, len(tokens), width)
    ]


def width_for(owned: Sequence[Sequence[int]]) -> int:
    """Tokens of a block, for adapters that own these tokens: wide ones where most would be half full or more."""
    return WIDE if 2 * sum(map(len, owned)) >= WIDE * len(owned) else NARROW


def segments(
    blocks: Sequence[tuple[Sequence[int], Sequence[int]]], width: int, *, device: torch.device | str
) -> Segments:
    """Of each block its tokens and its adapter's pages; neither sequence of blocks nor any block is empty."""
    reach = max(len(pages) for _, pages in blocks)
    tokens = [[*own, *[-1] * (width - len(own))] for own, _ in blocks]
    pages = [[*rows, *[0] * (reach - len(rows))] for _, rows in blocks]
    counts = [len(rows) for _, rows in blocks]
    return Segments(*(torch.tensor(t, dtype=torch.int32, device=device) for t in (tokens, pages, counts)))


def alone(pages: Sequence[Sequence[int]], reach: int, *, device: torch.device | str = "cpu") -> Segments:
    """A block for each token, in the tokens' order: of each the pages of its adapter, none for the bare base.

    reach: W, not less than any has. The shape says nothing of who wears what, so a captured step can read it anew.
    """
    if any(len(own) > reach for own in pages):
        raise ValueError(f"adapters of {max(map(len, pages))} pages do not fit into {reach}")
    table = torch.tensor([[*own, *[0] * (reach - len(own))] for own in pages], dtype=torch.int32, device=device)
    counts = torch.tensor([len(own) for own in pages], dtype=torch.int32, device=device)
    return Segments(torch.arange(len(pages), dtype=torch.int32, device=device)[:, None], table, counts)
