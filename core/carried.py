"""Effects on their way to another process: what can be told in JSON, and their tensors, which travel beside it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from core.effects import Effect, KVPrefix, LowRank, SoftPrompt
from core.orders import EffectPlan, LowRankPlan, PrefixPlan, PromptPlan, TensorPlan


def plan_of(effect: Effect) -> tuple[EffectPlan, list[Tensor]]:
    """What effect_of makes it of again."""
    match effect:
        case LowRank(a, b, scale):
            plan = LowRankPlan(
                sites=tuple(a),
                scale=tuple(scale[site] for site in a),
                dropout=effect.dropout,
                tables=tuple(sorted(effect.tables)),
                magnitudes=tuple(effect.magnitude),
                norms=tuple(effect.norm),
            )
            tensors = [*a.values(), *(b[site] for site in a), *effect.magnitude.values(), *effect.norm.values()]
            return plan, tensors
        case SoftPrompt(prompt):
            return PromptPlan(), [prompt]
        case KVPrefix(keys, values):
            return PrefixPlan(), [keys, values]


def effect_of(plan: EffectPlan, tensors: Iterator[Tensor]) -> Effect:
    """The effect again, of the next tensors of these. A soft prompt comes without its template."""
    match plan:
        case LowRankPlan(sites=sites):
            return LowRank(
                {site: next(tensors) for site in sites},
                {site: next(tensors) for site in sites},
                dict(zip(sites, plan.scale, strict=True)),
                plan.dropout,
                frozenset(plan.tables),
                {site: next(tensors) for site in plan.magnitudes},
                {site: next(tensors) for site in plan.norms},
            )
        case PromptPlan():
            return SoftPrompt(next(tensors))
        case PrefixPlan():
            return KVPrefix(next(tensors), next(tensors))


def tensor_plan(tensor: Tensor) -> TensorPlan:
    """What it looks like."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorPlan(shape=tuple(tensor.shape), dtype=dtype, is_live=tensor.requires_grad)


def room_for(plan: TensorPlan, device: torch.device) -> Tensor:
    """A tensor that looks like it."""
    return torch.empty(plan.shape, dtype=getattr(torch, plan.dtype), device=device)


def leaves_of(tensors: Sequence[Tensor], plans: Sequence[TensorPlan]) -> tuple[list[Tensor], Tensor]:
    """The same numbers, those that are live as leaves whose gradients add up in one flat tensor of zeros, fp32."""
    live = [plan.is_live for plan in plans]
    sizes = [tensor.numel() for tensor, is_live in zip(tensors, live, strict=True) if is_live]
    flat = torch.zeros(sum(sizes), dtype=torch.float32, device=tensors[0].device if tensors else None)
    rooms = iter(torch.split(flat, sizes))
    leaves = []
    for tensor, is_live in zip(tensors, live, strict=True):
        leaf = tensor.detach()
        if is_live:
            leaf = leaf.requires_grad_()
            leaf.grad = next(rooms).view(leaf.shape)
        leaves.append(leaf)
    return leaves, flat
