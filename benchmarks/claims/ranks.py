"""AdaLoRA beside LoRA at an equal budget: better where few layers matter, worse where all do. Zhang et al. 2023, 4.

A frozen residual MLP is to become a teacher: itself, with an update of some ranks in some of its 12 matrices. Both
methods end with 24 ranks in all. The layers are the routed ones that the forward of a language model has.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.claims import toy
from benchmarks.claims.finding import Check, Figure, Finding, at_least, at_most, mean
from core.base.facts import BaseFacts, Site
from core.effects import LowRank
from core.linear import RoutedLinear, Switchboard, flight_of
from core.methods import METHODS, Method
from core.ops.pool import RankPool
from core.optimisers import optimiser_of
from core.routing import Routing
from core.specs.method import AdaLoraSpec, LoraSpec, MethodSpec

CLAIM = "at an equal budget AdaLoRA beats LoRA where few layers matter, and LoRA wins where all matter alike"
WIDTH, MATRICES, STEPS, BATCH = 32, 12, 800, 64
RATES, SEEDS = (3e-3, 1e-2), (0, 1, 2)
TEACHERS = {  # the rank of each matrix's update
    "concentrated": (0, 0, 0, 6, 0, 0, 0, 0, 6, 0, 0, 0),
    "mild": (1, 0, 1, 0, 5, 0, 2, 0, 5, 0, 3, 0),
    "uniform": (2,) * MATRICES,
}
SCALE = 2.0  # alpha over rank


def _pruned(init_r: int) -> AdaLoraSpec:
    return AdaLoraSpec(
        init_r=init_r,
        target_r=2,
        lora_alpha=SCALE * init_r,
        tinit=STEPS // 10,
        tfinal=3 * STEPS // 10,
        deltaT=10,
        orth_reg_weight=0.1,
    )


METHODS_TRIED: dict[str, MethodSpec] = {
    "LoRA, rank 2": LoraSpec(r=2, lora_alpha=SCALE * 2),
    "AdaLoRA, 4 to 2": _pruned(4),
    "AdaLoRA, 6 to 2": _pruned(6),
}
EXPECTED = {
    "concentrated": (0.0135, 0.0074, 0.0023),
    "mild": (0.0066, 0.0024, 0.0022),
    "uniform": (0.0000, 0.0048, 0.0021),
}


def measure(cache: Path) -> Finding:
    """Three teachers, three methods, three seeds; of two learning rates the one that does better on the first seed."""
    del cache
    facts = _facts()
    error: dict[str, dict[str, float]] = {}
    slants = []
    for teacher, ranks in TEACHERS.items():
        error[teacher] = {}
        for name, spec in METHODS_TRIED.items():
            best = _at_the_better_rate(spec, facts, ranks)
            error[teacher][name] = mean([taught.mse for taught in best])
            slants += [taught.slant for taught in best if isinstance(spec, AdaLoraSpec)]
    figures = [
        Figure(f"mean squared error, {teacher} teacher", name, error[teacher][name], told)
        for teacher, expected in EXPECTED.items()
        for name, told in zip(METHODS_TRIED, expected, strict=True)
    ]
    figures.append(Figure("largest entry of Q Q' - I at the end", "AdaLoRA", max(slants)))
    return Finding(CLAIM, tuple(figures), (*_orderings(error), at_most("max |Q Q' - I| < .05", max(slants), 0.05)))


def _orderings(error: dict[str, dict[str, float]]) -> list[Check]:
    checks: list[Check] = []
    for teacher in ("concentrated", "mild"):
        lora, *pruned = error[teacher].values()
        checks += [
            at_most(f"{teacher}: {name} <= .75 LoRA", mse, 0.75 * lora)
            for name, mse in zip(list(METHODS_TRIED)[1:], pruned, strict=True)
        ]
    lora, *pruned = error["uniform"].values()
    return [*checks, at_least("uniform: LoRA wins", min(pruned), lora)]


@dataclass(frozen=True)
class Taught:
    """One method, trained on one teacher at one rate."""

    mse: float  # on inputs it has not seen
    slant: float  # the largest entry of Q Q' - I over all layers


class _Residual(nn.Module):
    """Six times x + W2 relu(W1 x / rms(x)), its 12 matrices routed as those of a language model are."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.board = Switchboard()
        self.pool = RankPool(device=torch.device("cpu"), dtype=torch.float32)
        layers = [nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(requires_grad=False) for _ in range(MATRICES)]
        for layer in layers:
            layer.weight.data.normal_(0, WIDTH**-0.5, generator=generator)
        self.layers = nn.ModuleList(RoutedLinear(str(at), layer, self.board) for at, layer in enumerate(layers))

    def wearing(self, effect: LowRank | None, x: Tensor) -> Tensor:
        """[N, 32] to [N, 32], all of it one row."""
        routing = Routing.of_rows([effect])
        self.board.routing, self.board.flight = routing, flight_of(routing, (0, len(x)), self.pool)
        h = x[None]
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            h = h + second(first(h / h.square().mean(-1, keepdim=True).sqrt()).relu())
        return h[0]


def _facts() -> BaseFacts:
    """Of a base of these 12 layers. All else is the toy language model's, and nobody asks."""
    sites = tuple(Site(str(at), WIDTH, WIDTH) for at in range(MATRICES))
    return dataclasses.replace(toy.untrained_facts(), sites=sites)


def _teacher(ranks: Sequence[int], seed: int) -> LowRank:
    """An update of these ranks, every direction of equal weight."""
    generator = torch.Generator().manual_seed(100 + seed)
    names = [str(at) for at, rank in enumerate(ranks) if rank]
    size = {str(at): rank for at, rank in enumerate(ranks) if rank}
    a = {name: torch.randn(size[name], WIDTH, generator=generator) * WIDTH**-0.5 for name in names}
    b = {name: torch.randn(WIDTH, size[name], generator=generator) * WIDTH**-0.5 for name in names}
    return LowRank(a, b, dict.fromkeys(names, 1.0))


def _at_the_better_rate(spec: MethodSpec, facts: BaseFacts, ranks: Sequence[int]) -> list[Taught]:
    """One for each seed. The first seed tries every rate; the others take its best."""
    first, *others = SEEDS
    tried = {rate: _taught(spec, facts, ranks, rate, first) for rate in RATES}
    better = min(tried, key=lambda rate: tried[rate].mse)
    return [tried[better], *(_taught(spec, facts, ranks, better, seed) for seed in others)]


def _taught(spec: MethodSpec, facts: BaseFacts, ranks: Sequence[int], rate: float, seed: int) -> Taught:
    model, target = _Residual(seed), _teacher(ranks, seed)
    generator = torch.Generator().manual_seed(200 + seed)
    method = METHODS[spec.type](spec, facts, generator=generator)
    optimiser = optimiser_of("adamw", method.groups(), weight_decay=0.0)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]
    for step in range(1, STEPS + 1):
        loss = _mse(model, method, target, torch.randn(BATCH, WIDTH, generator=generator))
        (loss + method.penalty()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        method.after_step(step, STEPS)
        optimiser.zero_grad()
    unseen = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(300))
    with torch.no_grad():
        return Taught(float(_mse(model, method, target, unseen)), _slant(method))


def _mse(model: _Residual, method: Method, target: LowRank, x: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = model.wearing(target, x)
    effect = method.effect()
    assert isinstance(effect, LowRank)
    return (model.wearing(effect, x) - wanted).square().mean()


def _slant(method: Method) -> float:
    """Of the right vectors as they are, pruned ones included; 0 for a method that has none."""
    rows = [t for name, t in method.state_dict().items() if name.endswith(".q")]
    return max((float((q @ q.T - torch.eye(len(q))).abs().max()) for q in rows), default=0.0)
