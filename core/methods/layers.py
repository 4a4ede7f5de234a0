"""Layers that start from a method's own generator, in torch's own distributions: one seed is one adapter."""

import math

import torch
from torch import nn


def linear(width_in: int, width_out: int, generator: torch.Generator | None) -> nn.Linear:
    """Weight [O, I] and bias [O] uniform within 1 / sqrt(I)."""
    layer = nn.Linear(width_in, width_out)
    _uniform(layer, 1 / math.sqrt(width_in), generator)
    return layer


def bidirectional_lstm(width_in: int, width: int, generator: torch.Generator | None) -> nn.LSTM:
    """One layer, both ways: [T, I] to [T, 2 * width]. All of it uniform within 1 / sqrt(width)."""
    layer = nn.LSTM(width_in, width, bidirectional=True)
    _uniform(layer, 1 / math.sqrt(width), generator)
    return layer


def _uniform(layer: nn.Module, bound: float, generator: torch.Generator | None) -> None:
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
