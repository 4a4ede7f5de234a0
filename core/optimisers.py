"""Which optimiser steps a run, by the name its spec gives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.specs.training import Optimizer


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a learning rate: so many times the run's."""

    parameters: Sequence[nn.Parameter]
    rate_factor: float = 1.0
    is_clipped_alone: bool = False  # its gradient's norm is its own, not that of all groups together


def optimiser_of(name: Optimizer, groups: Sequence[Group], *, weight_decay: float) -> torch.optim.Optimizer:
    """A fresh one. Each of its param_groups keeps its rate_factor."""
    told: list[dict[str, Any]] = [{"params": list(g.parameters), "rate_factor": g.rate_factor} for g in groups]
    return _OPTIMISERS[name](told, weight_decay)


def _adamw(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


_OPTIMISERS: dict[Optimizer, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {"adamw": _adamw}
