"""Arms of benchmarks/serving.py about adapters that come and go: thousands registered, and one that arrives cold.

`python -m benchmarks.serving_many PLAN.json`, a round for every line it reads, as benchmarks/serving_ours.py.
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving_adapters import MOVED
from benchmarks.serving_ours import Arm, Found, Plan, digest_of, serve
from core import peft_files
from core.effects import Effect, LowRank
from core.methods import METHODS
from core.specs.generation import Frame
from core.specs.method import LoraSpec

RANK, SITES = 4, ("q_proj", "v_proj")
PAGE_BYTES = 4096
DECODING, ARRIVALS = 15, (6, 14, 22)  # rows that decode, and the steps at which another row arrives


class Maker:
    """Small adapters by their digest, made when they are asked for, as a store would give them."""

    def __init__(self) -> None:
        self.arm: Arm | None = None

    def __call__(self, digest: str) -> Effect:
        """The serving form."""
        assert self.arm is not None
        generator = torch.Generator().manual_seed(int(digest, 16))
        sites = [site for site in self.arm.base.facts.sites if site.name.endswith(SITES)]
        a = {s.name: torch.randn(RANK, s.width_in, generator=generator) / s.width_in**0.5 for s in sites}
        b = {s.name: torch.randn(s.width_out, RANK, generator=generator) * 0.02 for s in sites}
        return self.arm.model.resident(LowRank(a, b, dict.fromkeys(a, 1.0)))


def arm_of(plan: Plan) -> Arm:
    """An engine whose adapters are made on the spot."""
    maker = Maker()
    maker.arm = arm = Arm(plan, load=maker)
    return arm


def many(plan: Plan) -> Callable[[], Found]:
    """Rounds of rows by many adapters, each round others than before it, from files and more than fit in memory."""
    arm = Arm(plan)
    arm.folders = written(plan, arm)
    rounds = iter(plan["groups"])
    arm.round([next(rounds)])

    def once() -> Found:
        before, group = arm.loads, next(rounds)
        found = arm.round([group])  # ends the benchmark if a single row fails
        worn = {plan["rows"][row]["adapter"] for row in group} - {None}
        return found | {"loads": arm.loads - before, "distinct": len(worn), "rss_mb": rss_mb()}

    return once


def written(plan: Plan, arm: Arm) -> dict[str, Path]:
    """The PEFT folder of every adapter that some row wears, by digest: of the others nobody asks."""
    spec = LoraSpec(r=RANK, lora_alpha=2 * RANK, target_modules=SITES)
    folders = {}
    for number in {row["adapter"] for row in plan["rows"]} - {None}:
        generator = torch.Generator().manual_seed(number)
        method = METHODS[spec.type](spec, arm.base.facts, generator=generator)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * MOVED)
        folders[digest_of(number)] = Path(plan["registry"]) / f"many-{number}"
        peft_files.write(method, folders[digest_of(number)], plan["base_model"])
    return folders


def cold(plan: Plan) -> Callable[[], Found]:
    """What other rows feel of a row that arrives with an adapter in memory, and of one whose adapter is not."""
    arm = arm_of(plan)
    arm.round()
    fresh = iter(range(1000, 100_000))  # adapters that were never seen

    def once() -> Found:
        warm, arriving = gaps(arm, lambda: 0), gaps(arm, lambda: next(fresh))
        return {"warm": told(warm), "cold": told(arriving), "tokens": len(warm), "cpu_s": sum(warm)}

    return once


def gaps(arm: Arm, adapter: Callable[[], int]) -> list[float]:
    """Wall seconds between tokens of the rows that were there before, while rows arrive that wear these adapters."""
    times: dict[int, list[float]] = {n: [] for n in range(DECODING)}
    for n, said in times.items():
        arm.engine.submit(arm.intake.sequence(arm.spec(n), noting(said)))
    step = 0
    while not arm.engine.is_idle:
        if step in ARRIVALS:
            arm.plan["rows"][DECODING]["adapter"] = adapter()
            arm.engine.submit(arm.intake.sequence(arm.spec(DECODING), lambda _frame: None))
            step += 1
        if arm.engine.step():
            step += 1
        else:
            time.sleep(0.001)
    return [later - sooner for said in times.values() for sooner, later in pairwise(said[1:])]


def noting(times: list[float]) -> Callable[[Frame], None]:
    """Notes when each frame came."""
    return lambda _frame: times.append(time.perf_counter())


def told(found: list[float]) -> dict[str, Any]:
    """In milliseconds."""
    return {"p50_ms": statistics.median(found) * 1e3, "p99_ms": statistics.quantiles(found, n=100)[98] * 1e3}


def rss_mb() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


if __name__ == "__main__":
    serve({"many": many, "cold": cold}, *sys.argv[1:])
