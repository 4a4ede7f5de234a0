"""Which optimiser steps a run, by the name its spec gives it, and its state as plain tensors.

Parameters and gradients are fp32. The 8-bit ones keep the moments of tensors of 4,096 entries or more in 8 bits, in
blocks with a scale each (Dettmers et al. 2021, arXiv:2110.02861); the paged ones keep those of large tensors in memory
that CUDA moves between GPU and CPU as it is needed (Dettmers et al. 2023, arXiv:2305.14314). Paging moves memory and
changes no number. Adafactor keeps of a matrix's second moments only the sums of its rows and columns (Shazeer and Stern
2018, arXiv:1804.04235, algorithm 4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.specs.training import Optimizer


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a learning rate: so many times the run's."""

    parameters: Sequence[nn.Parameter]
    rate_factor: float = 1.0
    is_clipped_alone: bool = False  # its gradient's norm is its own, not that of all groups together


def optimiser_of(name: Optimizer, groups: Sequence[Group], *, weight_decay: float) -> torch.optim.Optimizer:
    """A fresh one, or on a CPU its unpaged form. Each of its param_groups keeps its rate_factor."""
    told: list[dict[str, Any]] = [{"params": list(g.parameters), "rate_factor": g.rate_factor} for g in groups]
    device = next((parameter.device for group in groups for parameter in group.parameters), torch.device("cpu"))
    return _OPTIMISERS[in_force(name, device)](told, weight_decay)


def in_force(name: Optimizer, device: torch.device) -> Optimizer:
    """Which optimiser a device steps for this one: a CPU pages nothing, so there it is the unpaged form."""
    return name if device.type == "cuda" else _UNPAGED.get(name, name)


def state_of(optimiser: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Parameter's number -> name -> tensor: all that a later step depends on, but for the groups and constants."""
    return {number: _tensors(moments) for number, moments in optimiser.state_dict()["state"].items()}


def load_state(optimiser: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Puts back what state_of said of an optimiser of the same name and parameters."""
    is_theirs = hasattr(optimiser, "get_state_buffer")
    given = {number: _as_theirs(optimiser, moments) if is_theirs else moments for number, moments in state.items()}
    optimiser.load_state_dict({"state": given, "param_groups": optimiser.state_dict()["param_groups"]})
    if is_theirs:
        _settle(optimiser)


def _tensors(moments: Mapping[str, Any]) -> dict[str, Tensor]:
    """One parameter's moments, flat. bitsandbytes nests some of them, counts its steps in an int, and adds its maps."""
    found: dict[str, Tensor] = {}
    for name, value in moments.items():
        if isinstance(value, Mapping):
            found |= _tensors(value)
        elif name not in _MAPS:
            found[name] = torch.as_tensor(value)
    return found


def _as_theirs(optimiser: Any, moments: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ANN401 - bitsandbytes' own
    """The same as bitsandbytes keeps it."""
    given: dict[str, Any] = {**moments, "step": int(moments["step"])}
    if moments["state1"].dtype is torch.uint8:
        given |= {name: optimiser.name2qmap[kind] for name, kind in _MAPS.items()}
    return given


def _settle(optimiser: Any) -> None:  # noqa: ANN401 - as above
    """Moves what was loaded into memory of the kind that it would have been made in: paged where it pages."""
    for parameter, moments in optimiser.state.items():
        for name in ("state1", "state2"):
            fresh = optimiser.get_state_buffer(parameter, dtype=moments[name].dtype)
            moments[name] = fresh.copy_(moments[name])


def _adamw(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def _adafactor(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    # A step is so many times the weights' own root mean square, but never of less than eps2. With 1 a tensor of zeros,
    # as B of LoRA is, moves at the learning rate itself, as in prompt tuning's recipe (Lester et al. 2021).
    return torch.optim.Adafactor(groups, weight_decay=weight_decay, eps=(None, 1.0))


def _of_bitsandbytes(kind: str) -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    def make(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
        # Loaded only where it is asked for: it takes seconds.
        import bitsandbytes.optim  # noqa: PLC0415

        made: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(groups, weight_decay=weight_decay)
        return made

    return make


_MAPS = {"qmap1": "dynamic", "qmap2": "udynamic"}
_UNPAGED: dict[Optimizer, Optimizer] = {"paged_adamw_32bit": "adamw", "paged_adamw_8bit": "adamw_8bit"}
_OPTIMISERS: dict[Optimizer, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "adamw_8bit": _of_bitsandbytes("AdamW8bit"),
    "paged_adamw_32bit": _of_bitsandbytes("PagedAdamW32bit"),
    "paged_adamw_8bit": _of_bitsandbytes("PagedAdamW8bit"),
}
