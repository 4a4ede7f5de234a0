"""LoRA (Hu et al. 2021, arXiv:2106.09685): each chosen weight W becomes W + (alpha / r) B A.

A starts Kaiming-uniform and B at zero, so that an untrained adapter changes nothing (section 4.1).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from core.base.facts import BaseFacts
from core.effects import LowRank
from core.optimisers import Group
from core.specs.method import LoraSpec


class Lora(nn.Module):
    """Low-rank updates of chosen linear layers, in fp32 whatever the base computes in."""

    base_precision = "bf16"

    def __init__(self, spec: LoraSpec, facts: BaseFacts, *, generator: torch.Generator | None = None) -> None:
        """Draw A from generator (the global one without). Raises ValueError if spec names no layer of the base."""
        super().__init__()
        self.spec = spec
        self.sites = facts.sites_named(spec.target_modules)
        self._others = [site for site in facts.sites if site not in self.sites]
        self.a = nn.ParameterList(torch.empty(spec.r, site.width_in) for site in self.sites)
        self.b = nn.ParameterList(torch.zeros(site.width_out, spec.r) for site in self.sites)
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)

    def effect(self) -> LowRank:
        """The parameters themselves: A [r, I] and B [O, r] of each site."""
        names = [site.name for site in self.sites]
        return LowRank(
            dict(zip(names, self.a, strict=True)),
            dict(zip(names, self.b, strict=True)),
            dict.fromkeys(names, self._scale),
            self.spec.lora_dropout,
        )

    def groups(self) -> list[Group]:
        """B may learn faster than A: LoRA+ (Hayou et al. 2024, arXiv:2402.12354)."""
        return [Group(list(self.a)), Group(list(self.b), self.spec.loraplus_lr_ratio)]

    def penalty(self) -> Tensor:
        """None: 0."""
        return torch.zeros((), device=self.a[0].device)

    def after_step(self, step: int, of: int) -> None:
        """Nothing: ranks stand still."""

    def peft_config(self) -> dict[str, Any]:
        """A LORA config. Names of layers are written out, so that no reader has to resolve them anew."""
        return {
            "peft_type": "LORA",
            "r": self.spec.r,
            "lora_alpha": self.spec.lora_alpha,
            "lora_dropout": self.spec.lora_dropout,
            "use_rslora": self.spec.use_rslora,
            "target_modules": self._targets(),
            "fan_in_fan_out": any(site.is_conv1d for site in self.sites),
            "bias": "none",
            "use_dora": False,
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
        }

    @property
    def _scale(self) -> float:
        return self.spec.lora_alpha / (math.sqrt(self.spec.r) if self.spec.use_rslora else self.spec.r)

    def _targets(self) -> list[str]:
        """Last parts of names where they say exactly our layers; the whole name where they would catch others."""
        ambiguous = {site.name.rpartition(".")[2] for site in self._others}
        lasts = {site.name: site.name.rpartition(".")[2] for site in self.sites}
        return sorted({name if last in ambiguous else last for name, last in lasts.items()})
