"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): W becomes W + s P Λ Q, and a budget spreads the ranks over the layers.

s = alpha / init_r to the end, whatever the ranks become. The triplets (a column of P, a number of Λ, a row of Q) that
matter least to the loss have their number set to zero, ever more of them, until target_r a layer are left on average;
P and Q go on learning, so a triplet may come back until the ranks rest. Where the paper and its authors' code differ
(order of a step, form of the penalty, equation 14), this is the code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.base.facts import BaseFacts, Site
from core.effects import Effect, Ensemble, LowRank
from core.optimisers import Group
from core.peft_low_rank import ranks_and_alphas
from core.specs.continuing import must_continue
from core.specs.method import AdaLoraSpec

NEVER_ZERO = 1e-5  # what the authors' code adds to the rank it divides by; files depend on it
SIDES = ("e", "q", "p")


@dataclass(frozen=True)
class Budget:
    """How many triplets all layers together may keep after each step, counted from 1 up to of."""

    first: int
    last: int
    rest_until: int  # tinit: so many steps pass before any goes
    rest_from: int  # of - tfinal: the step of the last allocation
    every: int  # deltaT

    def after(self, step: int) -> int:
        """Falls as a cube, fast at first.

        The paper's equation 14 has a misprint: as printed it would start above first.
        """
        if step <= self.rest_until:
            return self.first
        if step > self.rest_from:
            return self.last
        left = 1 - (step - self.rest_until) / (self.rest_from - self.rest_until)
        return int((self.first - self.last) * left**3 + self.last)

    def is_due(self, step: int) -> bool:
        """Whether triplets are chosen anew after this step, before the last allocation."""
        return self.rest_until < step < self.rest_from and step % self.every == 0


class Triplets(nn.Module):
    """One layer's P, Λ and Q, what is known of their importance, and which of them are kept."""

    kept: Tensor  # [R] bool

    def __init__(self, site: Site, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.e = nn.Parameter(torch.zeros(rank, 1))  # Λ
        self.q = nn.Parameter(torch.empty(rank, site.width_in).normal_(0, 0.02, generator=generator))
        self.p = nn.Parameter(torch.empty(site.width_out, rank).normal_(0, 0.02, generator=generator))
        for side in SIDES:
            self.register_buffer(f"sensitivity_{side}", torch.zeros_like(self.get_parameter(side)))
            self.register_buffer(f"uncertainty_{side}", torch.zeros_like(self.get_parameter(side)))
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))

    def observe(self, beta1: float, beta2: float) -> None:
        """Smooth |weight * gradient| of every entry, and how far it strays from that. Sections 3.2, equations 8 to 10.

        The weights are those after the step, the gradients those of before it, as in the authors' code.
        """
        for side in SIDES:
            weight = self.get_parameter(side)
            if weight.grad is None:
                raise RuntimeError("AdaLoRA's gradients were gone before after_step: importance is made of them")
            now = (weight * weight.grad).abs()
            sensitivity, uncertainty = self.get_buffer(f"sensitivity_{side}"), self.get_buffer(f"uncertainty_{side}")
            sensitivity.copy_(beta1 * sensitivity + (1 - beta1) * now)
            uncertainty.copy_(beta2 * uncertainty + (1 - beta2) * (now - sensitivity).abs())

    def scores(self) -> Tensor:
        """Importance of each triplet, [R]: equation 7."""
        e, q, p = (self.get_buffer(f"sensitivity_{s}") * self.get_buffer(f"uncertainty_{s}") for s in SIDES)
        return e[:, 0] + (q.mean(1) + p.mean(0))

    def keep(self, kept: Tensor) -> None:
        """From now on these, [R] bool; the others' numbers are zero."""
        self.kept.copy_(kept)
        self.e.masked_fill_(~kept[:, None], 0)

    def distances(self) -> Tensor:
        """How far P and Q are from orthogonal, pruned or not: the Frobenius norms of QQᵀ - I and PᵀP - I, [2]."""
        one = torch.eye(len(self.q), device=self.q.device)
        return torch.stack([torch.linalg.norm(self.q @ self.q.T - one), torch.linalg.norm(self.p.T @ self.p - one)])


class AdaLora(nn.Module):
    """Low-rank updates whose ranks are learned, in fp32 whatever the base computes in."""

    settled: Tensor  # [] bool: the ranks rest
    steps: Tensor  # [] int64: of the whole run, as after_step was told; 0 before

    def __init__(self, spec: AdaLoraSpec, facts: BaseFacts, *, generator: torch.Generator | None = None) -> None:
        """Draw P and Q from generator (the global one without). Raises ValueError if spec names no layer."""
        super().__init__()
        self.spec = spec
        self.base_precision: str = spec.base_precision
        self.sites = facts.sites_named(spec.target_modules)
        self.triplets = nn.ModuleList(Triplets(site, spec.init_r, generator) for site in self.sites)
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def effect(self) -> LowRank:
        """A = Λ Q and B = P of each site. Without gradients only the kept triplets, and only sites that have any."""
        pairs: dict[str, tuple[Tensor, Tensor]] = {site.name: (t.q * t.e, t.p) for site, t in self._layers()}
        if not torch.is_grad_enabled():
            kept = {site.name: t.kept for site, t in self._layers() if t.kept.any()}
            pairs = {name: (pairs[name][0][rows], pairs[name][1][:, rows]) for name, rows in kept.items()}
        return LowRank(
            {name: a for name, (a, _) in pairs.items()},
            {name: b for name, (_, b) in pairs.items()},
            dict.fromkeys(pairs, self.scale),
            self.spec.lora_dropout,
        )

    def groups(self) -> list[Group]:
        """All alike."""
        return [Group(list(self.parameters()))]

    def penalty(self) -> Tensor:
        """What keeps P and Q orthogonal: the mean of the distances, or, as in the paper, the sum of their squares."""
        if not self.spec.orth_reg_weight:
            return torch.zeros((), device=self.settled.device)
        distances = torch.cat([t.distances() for _, t in self._layers()])
        whole = distances.mean() if self.spec.orthogonality == "norm" else distances.square().sum()
        return self.spec.orth_reg_weight * whole

    @torch.no_grad()
    def after_step(self, step: int, of: int) -> None:
        """Weigh the triplets and keep the best of them; from the last allocation on the same ones to the end.

        Raises ValueError where the spec leaves no step of of to prune in.
        """
        budget = self.budget(of)
        self.steps.fill_(of)
        if budget.first == budget.last:
            return
        if step < budget.rest_from:
            for _, t in self._layers():
                t.observe(self.spec.beta1, self.spec.beta2)
            if budget.is_due(step):
                self._allocate(budget.after(step))
        elif not self.settled:
            # At this step, or at the next one where its loss was not finite.
            self._allocate(budget.last)
            self.settled.fill_(value=True)
        else:
            for _, t in self._layers():
                t.keep(t.kept)  # the optimiser has moved what was zero

    def peft_config(self) -> dict[str, Any]:
        """A LORA config, each layer with its own rank, that any reader of LoRA knows; or PEFT's own."""
        return self.native_config() if self.spec.export_as == "adalora" else self._lora_config()

    def native_config(self) -> dict[str, Any]:
        """PEFT's own. It refuses a schedule without a step to prune in, so that of an untrained method has one."""
        spec, steps = self.spec, int(self.steps)
        budget = self.budget(steps) if steps else None
        same = ("init_r", "target_r", "deltaT", "beta1", "beta2", "orth_reg_weight", "lora_alpha", "lora_dropout")
        return {
            "peft_type": "ADALORA",
            **{name: getattr(spec, name) for name in same},
            "tinit": budget.rest_until if budget else 0,
            "tfinal": steps - budget.rest_from if budget else 0,
            "total_step": steps or 1,
            "target_modules": sorted(site.name for site in self.sites),
            "fan_in_fan_out": any(site.is_conv1d for site in self.sites),
            "bias": "none",
            "modules_to_save": None,
            "rank_pattern": {f"{site.name}.lora_E": t.kept.tolist() for site, t in self._layers()},
        }

    def _lora_config(self) -> dict[str, Any]:
        """Rank 0 is left out."""
        ranks = {name: rank for name, rank in self.ranks().items() if rank}
        return {
            "peft_type": "LORA",
            **ranks_and_alphas(ranks, {name: rank * self.scale for name, rank in ranks.items()}),
            "lora_dropout": self.spec.lora_dropout,
            "use_rslora": False,
            "target_modules": sorted(ranks),
            "fan_in_fan_out": any(site.is_conv1d for site in self.sites),
            "bias": "none",
            "use_dora": False,
            "modules_to_save": None,
        }

    def continue_from(self, effect: Effect | Ensemble) -> None:
        """Never: ValueError."""
        must_continue(self.spec, type(effect).__name__)

    def ranks(self) -> dict[str, int]:
        """Site -> how many triplets it keeps now."""
        return {site.name: int(t.kept.sum()) for site, t in self._layers()}

    def budget(self, of: int) -> Budget:
        """Of a run of so many steps. Raises ValueError where none would be left to prune in."""
        spec, count = self.spec, len(self.sites)
        tinit, tfinal = spec.phases(of)
        return Budget(count * spec.init_r, count * spec.target_r, tinit, of - tfinal, spec.deltaT)

    @property
    def scale(self) -> float:
        """Of every site, to the end: never by the rank of now."""
        return self.spec.lora_alpha / (self.spec.init_r + NEVER_ZERO)

    def _allocate(self, budget: int) -> None:
        """Keep the triplets that matter most, so many of all layers together. Of equals the first in line stay."""
        scores = torch.cat([t.scores() for _, t in self._layers()])
        if budget >= len(scores):
            return
        if self.spec.official_ties:
            kept = scores > scores.kthvalue(len(scores) - budget)[0]
        else:
            kept = torch.zeros_like(scores, dtype=torch.bool)
            kept[scores.argsort(descending=True, stable=True)[:budget]] = True
        for (_, t), own in zip(self._layers(), kept.view(len(self.sites), -1), strict=True):
            t.keep(own)

    def _layers(self) -> list[tuple[Site, Triplets]]:
        return list(zip(self.sites, self.triplets, strict=True))  # type: ignore[arg-type]  # a ModuleList of Triplets
