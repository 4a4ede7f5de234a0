"""LoRA (Hu et al. 2021, arXiv:2106.09685): each chosen weight W becomes W + s B A, where s = alpha / r.

A starts Kaiming-uniform and B at zero, so that an untrained adapter changes nothing (section 4.1); a table of
embeddings has it the other way round. Beside it: rsLoRA (s = alpha / sqrt(r)), LoRA+ (B learns faster), DoRA (each
output's magnitude m is learned too: m (W + s B A) / |W + s B A|), and two starts from W's own SVD or QR. Those train
W + s (B A - B0 A0), so that the base model is shared as it is and step 0 is still the base model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.base.facts import BaseFacts, Site
from core.effects import Effect, Ensemble, LowRank, norm_of
from core.methods.starts import OF_NOTHING, OF_WEIGHT, Wanted, of_table
from core.optimisers import Group
from core.peft_low_rank import ranks_and_alphas
from core.specs.continuing import must_continue
from core.specs.method import LoraSpec

T = TypeVar("T")


class Lora(nn.Module):
    """Low-rank updates of chosen layers, in fp32 whatever the base computes in."""

    def __init__(self, spec: LoraSpec, facts: BaseFacts, *, generator: torch.Generator | None = None) -> None:
        """Draw what is random from generator (the global one without).

        Raises:
            ValueError: spec names a layer that the base model has not, or asks of a layer what cannot be.

        """
        super().__init__()
        self.spec, self._weight = spec, facts.weight
        self.base_precision: str = spec.base_precision
        self.sites = facts.sites_named(spec.target_modules, with_table=True)
        self._others = [site for site in facts.sites if site not in self.sites]
        self.ranks = _chosen(spec.rank_pattern, "rank_pattern", self.sites, spec.r)
        self.alphas = _chosen(spec.alpha_pattern, "alpha_pattern", self.sites, spec.lora_alpha)
        self._is_held = spec.init_lora_weights in OF_WEIGHT  # against what it began with
        _refuse_what_cannot_be(spec, self.sites, self.ranks)
        self.a, self.b, self.magnitude = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for number, site in enumerate(self.sites):
            a, b = self._start(site, generator)
            self.a.append(nn.Parameter(a))
            self.b.append(nn.Parameter(b))
            if self._is_held:
                self.register_buffer(f"a0_{number}", a.clone())
                self.register_buffer(f"b0_{number}", b.clone())
            if spec.use_dora:
                # Measured where effect() will measure it, so that an untrained gain is 1 to the last bit.
                weight = self._weight(site.name)
                a, b = (side.to(weight.device) for side in self._pair(number))
                self.magnitude.append(nn.Parameter(norm_of(weight, a, b, self._scale(site.name)).cpu()))

    def effect(self) -> LowRank:
        """A [R, I] and B [O, R] of each site, and DoRA's magnitudes [O] with the norms of now."""
        names = [site.name for site in self.sites]
        pairs = dict(zip(names, map(self._pair, range(len(names))), strict=True))
        magnitude = dict(zip(names, self.magnitude, strict=True)) if self.spec.use_dora else {}
        return LowRank(
            {name: a for name, (a, _) in pairs.items()},
            {name: b for name, (_, b) in pairs.items()},
            {name: self._scale(name) for name in names},
            self.spec.lora_dropout,
            tables=frozenset(site.name for site in self.sites if site.is_table),
            magnitude=magnitude,
            norm={name: norm_of(self._weight(name), *pairs[name], self._scale(name)) for name in magnitude},
        )

    def groups(self) -> list[Group]:
        """B may learn faster than A: LoRA+ (Hayou et al. 2024, arXiv:2402.12354)."""
        groups = [Group(list(self.a)), Group(list(self.b), self.spec.loraplus_lr_ratio)]
        return [*groups, Group(list(self.magnitude))] if self.spec.use_dora else groups

    def penalty(self) -> Tensor:
        """None: 0."""
        return torch.zeros((), device=self.a[0].device)

    def after_step(self, step: int, of: int) -> None:
        """Nothing: ranks stand still."""

    def peft_config(self) -> dict[str, Any]:
        """A LORA config. Names of layers are written out, so that no reader has to resolve them anew."""
        # A pair that is held against its start is a plain one of twice the rank, at the same scale.
        times, root = (2, math.sqrt(2) if self.spec.use_rslora else 2) if self._is_held else (1, 1)
        return {
            "peft_type": "LORA",
            **ranks_and_alphas(
                {name: rank * times for name, rank in self.ranks.items()},
                {name: alpha * root for name, alpha in self.alphas.items()},
            ),
            "lora_dropout": self.spec.lora_dropout,
            "use_rslora": self.spec.use_rslora,
            "target_modules": self._targets(),
            "fan_in_fan_out": any(site.is_conv1d for site in self.sites),
            "bias": "none",
            "use_dora": self.spec.use_dora,
            "modules_to_save": None,
        }

    @torch.no_grad()
    def continue_from(self, effect: Effect | Ensemble) -> None:
        """Takes A and B, the latter at this spec's scale, and DoRA's magnitudes. Layers and ranks must be the same."""
        must_continue(self.spec, "LORA" if isinstance(effect, LowRank) else type(effect).__name__)
        assert isinstance(effect, LowRank)
        if apart := {site.name for site in self.sites} ^ set(effect.a):
            raise ValueError(f"this LoRA and the adapter it goes on from have different layers: {sorted(apart)[:5]}")
        if bool(effect.magnitude) != self.spec.use_dora:
            raise ValueError(f"use_dora is {self.spec.use_dora}, and of the adapter it is {bool(effect.magnitude)}")
        for number, site in enumerate(self.sites):
            name, a, b = site.name, effect.a[site.name], effect.b[site.name]
            if len(a) != self.ranks[name]:
                raise ValueError(f"{name} has rank {len(a)} in the adapter and {self.ranks[name]} here: set r to match")
            self.a[number].copy_(a)
            self.b[number].copy_(b * (effect.scale[name] / self._scale(name)))
            if self.spec.use_dora:
                self.magnitude[number].copy_(effect.magnitude[name])

    def _start(self, site: Site, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        rank, scale, name = self.ranks[site.name], self._scale(site.name), self.spec.init_lora_weights
        if self._is_held:
            a, b = OF_WEIGHT[name](self._weight(site.name), rank, scale)
            return a.cpu(), b.cpu()
        start = of_table if site.is_table else OF_NOTHING[name]
        return start(Wanted(rank, site.width_in, site.width_out), generator)

    def _pair(self, number: int) -> tuple[Tensor, Tensor]:
        """A and B of one site. Where they are held against their start, that is in them too: B A - B0 A0."""
        a, b = self.a[number], self.b[number]
        if not self._is_held:
            return a, b
        a0, b0 = self.get_buffer(f"a0_{number}"), self.get_buffer(f"b0_{number}")
        return torch.cat([a, a0]), torch.cat([b, -b0], 1)

    def _scale(self, name: str) -> float:
        return self.alphas[name] / (math.sqrt(self.ranks[name]) if self.spec.use_rslora else self.ranks[name])

    def _targets(self) -> list[str]:
        """Last parts of names where they say exactly our layers; the whole name where they would catch others."""
        ambiguous = {site.name.rpartition(".")[2] for site in self._others}
        lasts = {site.name: site.name.rpartition(".")[2] for site in self.sites}
        return sorted({name if last in ambiguous else last for name, last in lasts.items()})


def _chosen(pattern: Mapping[str, T], field: str, sites: Sequence[Site], default: T) -> dict[str, T]:
    """Site -> what the pattern says of it. Of several names that it answers to the longest counts, in any order.

    Raises ValueError for a name that no site answers to.
    """
    if idle := [name for name in pattern if not any(site.answers(name) for site in sites)]:
        raise ValueError(f"{field} names {sorted(idle)}, to which no layer of target_modules answers")
    found = {site.name: max((n for n in pattern if site.answers(n)), key=len, default=None) for site in sites}
    return {site: default if name is None else pattern[name] for site, name in found.items()}


def _refuse_what_cannot_be(spec: LoraSpec, sites: Sequence[Site], ranks: Mapping[str, int]) -> None:
    is_of_weight = spec.init_lora_weights in OF_WEIGHT
    for site in sites:
        if site.is_table and (spec.use_dora or is_of_weight):
            asked = "use_dora" if spec.use_dora else f"init_lora_weights {spec.init_lora_weights!r}"
            raise ValueError(f"{asked} is of linear layers, and {site.name} is a table of embeddings")
        if is_of_weight and ranks[site.name] > min(site.width_in, site.width_out):
            raise ValueError(
                f"{site.name} is {site.width_out} by {site.width_in}: its weight has no {ranks[site.name]} directions "
                f"for init_lora_weights {spec.init_lora_weights!r} to start from"
            )
