"""Whether an effect fits a base model, asked before any row wears it. Knows shapes alone: no model, no method."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from core.effects import Effect, KVPrefix, LowRank, SoftPrompt
from core.routing import tensors_of


@dataclass(frozen=True)
class Shape:
    """What a base model asks of whatever its rows wear."""

    sites: Mapping[str, tuple[int, int]]  # linear layer -> I and O
    table: tuple[str, int, int]  # the token embeddings: their name, V and H
    prefix: tuple[int, int, int]  # L, K and D


def check(effect: Effect, shape: Shape) -> None:
    """Raise ValueError if an effect does not fit a base model of this shape, or is not finite."""
    match effect:
        case LowRank():
            _check_low_rank(effect, shape)
        case SoftPrompt(prompt):
            hidden = shape.table[2]
            if prompt.shape[1] != hidden:
                raise ValueError(f"the soft prompt is {prompt.shape[1]} wide, the base model {hidden}")
            _check_layout(effect, shape.table[1])
        case KVPrefix(keys, values):
            own = keys.shape[0], keys.shape[2], keys.shape[3]
            if own != shape.prefix or values.shape != keys.shape:
                raise ValueError(f"the prefix has (layers, kv_heads, width) {own}, the base model {shape.prefix}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors_of(effect)):
        raise ValueError("the adapter holds NaN or infinity; it would spoil the rows beside its own")


def _check_layout(effect: SoftPrompt, vocabulary: int) -> None:
    ids = (*effect.layout.before, *effect.layout.after)
    if not all(-len(effect.prompt) <= i < vocabulary for i in ids):
        raise ValueError(f"the template has ids of {min(ids)} to {max(ids)}, the base model {vocabulary} words")


def _check_low_rank(effect: LowRank, shape: Shape) -> None:
    for name in effect.a:
        a, b = tuple(effect.a[name].shape), tuple(effect.b[name].shape)
        width_in, width_out = _widths(name, shape, is_table=name in effect.tables)
        if (a[1], b[0]) != (width_in, width_out) or a[0] != b[1]:
            raise ValueError(f"{name}: A {a} and B {b} do not fit a layer of {width_in} inputs and {width_out} outputs")
    for name, magnitude in effect.magnitude.items():
        if name not in effect.a or name in effect.tables or magnitude.shape != effect.b[name].shape[:1]:
            raise ValueError(f"{name}: a magnitude {tuple(magnitude.shape)} belongs to no linear layer of the adapter")


def _widths(name: str, shape: Shape, *, is_table: bool) -> tuple[int, int]:
    """I and O. Raises ValueError for a layer that is not there."""
    table, vocabulary, hidden = shape.table
    if is_table:
        if name != table:
            raise ValueError(f"no embeddings named {name!r}; this base model's are {table!r}")
        return vocabulary, hidden
    if name not in shape.sites:
        raise ValueError(f"no layer named {name!r}; this base model has {sorted(shape.sites)[:8]} and so on")
    return shape.sites[name]
