"""Layers of one block that read one input: queries, keys and values; gate and up. While serving, one product is all.

What a layer is called stays as it is: the first of them that is asked multiplies by all their weights, laid under one
another once, and the others take their columns of that. A product of few rows is made of reading its weight and of
being begun at all; begun once instead of three times it costs a seventh to a third less on a CPU, and on a GPU a launch
instead of three.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from core.ops.packed import FEW, is_packable, pack, packed_product

KINDS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # as every family here names them that has them


class Sibling(Protocol):
    """What this must know of a layer."""

    site: str
    base: nn.Module
    siblings: "Siblings | None"


class Siblings:
    """The layers of one input, in the order in which their block asks them."""

    def __init__(self, sites: Sequence[Sibling]) -> None:
        """Lays their weights out. On a device they become parts of one weight, on a CPU they are copied, packed."""
        linears = [site.base for site in sites if isinstance(site.base, nn.Linear)]
        assert len(linears) == len(sites)
        self.widths = {site.site: layer.out_features for site, layer in zip(sites, linears, strict=True)}  # O of each
        biases = [layer.bias for layer in linears]
        with torch.inference_mode(mode=False), torch.no_grad():
            whole = torch.cat([layer.weight.detach() for layer in linears])  # [O, I]
            self._bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
            self._packed = pack(whole) if is_packable(whole) else None
            self._whole = None if self._packed is not None else whole
            if self._packed is None:
                for layer, part in zip(linears, torch.split(whole, list(self.widths.values())), strict=True):
                    layer.weight.data = part
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        for site in sites:
            site.siblings = self

    def serves(self, x: Tensor) -> bool:
        """Whether one product is the way for x [..., I]: without gradients, and of as few rows as a packed one pays."""
        return not torch.is_grad_enabled() and (self._packed is None or x.shape[-2] <= FEW)

    def is_first(self, site: str) -> bool:
        """Whether a layer is the one that is asked first."""
        return next(iter(self.widths)) == site

    def whole(self, x: Tensor) -> Tensor:
        """What all of them say to x [..., I], side by side: [..., O]. Kept until the last of them has been asked."""
        if self._packed is not None:
            y = packed_product(x, self._packed, self._bias)
        else:
            assert self._whole is not None
            y = linear(x, self._whole, self._bias)
        self._x, self._y = x, y
        return y

    @property
    def answer(self) -> Tensor:
        """What all of them said to the x that is being asked about: [..., O], to be written to."""
        assert self._y is not None
        return self._y

    def part(self, site: str, x: Tensor) -> Tensor:
        """What one of them says to x: its columns of what all say, to be written to if need be."""
        if self.is_first(site) or self._x is None or self._y is None or not _is_same(x, self._x):
            self.whole(x)
        assert self._y is not None
        names = list(self.widths)
        place = names.index(site)
        start = sum(self.widths[name] for name in names[:place])
        part = self._y[..., start : start + self.widths[site]]
        if place == len(names) - 1:
            self._x = self._y = None
        return part


def siblings_of(sites: Mapping[str, Sibling]) -> list[list[Sibling]]:
    """Those among these layers that read one input, and can be multiplied as one."""
    found = []
    for kind in KINDS:
        for name in sites:
            parent, _, leaf = name.rpartition(".")
            group = [sites.get(f"{parent}.{other}") for other in kind]
            if leaf == kind[0] and (alike := _alike(group)):
                found.append(alike)
    return found


def _alike(group: Sequence[Sibling | None]) -> list[Sibling] | None:
    """All of them, if all are there, 16 or 32 bits wide, and all or none have a bias."""
    found = [site for site in group if site is not None and isinstance(site.base, nn.Linear)]
    biases = {site.base.bias is None for site in found}
    kinds = {site.base.weight.dtype for site in found}
    return found if len(found) == len(group) and len(biases) == len(kinds) == 1 else None


def _is_same(x: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in the same place. The other is kept, so that its place is not given anew."""
    return x.data_ptr() == other.data_ptr() and x.numel() == other.numel() and x.dtype == other.dtype
