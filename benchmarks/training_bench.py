"""What the parts of benchmarks/training.py share: arms that take turns, each a fresh process, and their tables."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from worker.allocator import ASKED_OF_TORCH

BASE = "smollm2-135m-instruct"
LORA = {"type": "lora", "r": 16, "lora_alpha": 32.0, "target_modules": "all-linear"}

Found = dict[str, Any]
console = Console(width=120)


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: which program, and its plan."""

    program: str  # "ours" or "peer"
    plan: Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    options: argparse.Namespace
    folder: Path  # the base's, converted
    work: Path  # plans and findings

    def found(self, arm: Arm) -> Found:
        """What one arm found, in a fresh process."""
        with tempfile.NamedTemporaryFile(dir=self.work, suffix=".json", delete=False) as file:
            plan_file = Path(file.name)
        found_file = plan_file.with_suffix(".found")
        shared = {
            "base_model": BASE,
            "cache": str(self.options.cache),
            "folder": str(self.folder),
            "rows": str(self.work / "rows.json"),
            "threads": self.options.threads,
            "warm_up": 1,
        }
        plan_file.write_text(json.dumps(shared | dict(arm.plan)))
        python = sys.executable if arm.program == "ours" else self.options.peer_python
        told = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": str(self.options.threads)}
        told |= ASKED_OF_TORCH if arm.program == "ours" else {}  # its trainer sets it before torch is imported
        command = [python, "-m", f"benchmarks.training_{arm.program}", str(plan_file), str(found_file)]
        done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{arm.plan} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found: Found = json.loads(found_file.read_text())
        return found

    def in_turns(self, arms: Mapping[str, Arm], rounds: int) -> dict[str, list[Found]]:
        """Every arm once a round, so many rounds."""
        found: dict[str, list[Found]] = {name: [] for name in arms}
        with ThreadPoolExecutor(len(arms) if self.options.together else 1) as pool:
            for number in range(rounds):
                for name, one in zip(arms, pool.map(self.found, arms.values()), strict=True):
                    found[name].append(one)
                    figure, load = one["cpu_us_per_token"], os.getloadavg()[0]
                    console.print(f"  round {number + 1} {name}: {figure:,.0f} µs/token, load {load:.1f}")
        return found


def ours(method: Mapping[str, Any], precision: str, steps: int, batch: int, **more: object) -> Arm:
    """Our trainer."""
    plan = {"arm": "steps", "method": method, "precision": precision, "steps": steps, "batch": batch, "rate": 2e-4}
    return Arm("ours", plan | more)


def peer(method: Mapping[str, Any], precision: str, steps: int, batch: int, options: Mapping[str, Any]) -> Arm:
    """TRL's. options: what differs from its defaults."""
    plan = {"arm": "steps", "method": method, "precision": precision, "steps": steps, "batch": batch, "rate": 2e-4}
    return Arm("peer", plan | {"options": options})


def compared(found: Mapping[str, Sequence[Found]], ours: str) -> Found:
    """Medians of every arm, and of its ratio to ours within a round, with that ratio's least and greatest."""
    arms, base = {}, found[ours]
    for name, rounds in found.items():
        ratios = [r["cpu_us_per_token"] / b["cpu_us_per_token"] for r, b in zip(rounds, base, strict=True)]
        arms[name] = {
            figure: statistics.median(r[figure] for r in rounds)
            for figure, value in rounds[0].items()
            if isinstance(value, float | int)
        } | {"losses": rounds[0].get("losses", []), "ratio": statistics.median(ratios), "ratios": sorted(ratios)}
        if "floor_us_per_token" in rounds[0]:
            shares = [r["floor_us_per_token"] / r["cpu_us_per_token"] for r in rounds]
            arms[name]["share_of_floor"] = statistics.median(shares)
    return {"arms": arms, "load": os.getloadavg()}


def show(part: str, found: Found) -> None:
    """The part's table."""
    if "greatest_relative_difference" in found:
        apart, limit = found["greatest_relative_difference"], found["limit"]
        console.print(f"{part}: losses differ by {apart:.1e} at most; the limit is {limit:.0e}")
    groups = (
        {part: found} if "arms" in found else {k: v for k, v in found.items() if isinstance(v, dict) and "arms" in v}
    )
    for title, group in groups.items():
        table = Table(title=title, title_justify="left")
        for heading in ("arm", "CPU µs/token", "tokens/s", "peak MB", "times ours", "share of floor"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for name, arm in group["arms"].items():
            spread = f"{arm['ratio']:.2f} ({arm['ratios'][0]:.2f}-{arm['ratios'][-1]:.2f})"
            speed, floor = arm.get("tokens_per_s"), arm.get("share_of_floor")
            table.add_row(
                name,
                f"{arm['cpu_us_per_token']:,.0f}",
                "" if speed is None else f"{speed:,.0f}",
                f"{arm['peak_mb']:,.0f}",
                spread,
                "" if floor is None else f"{floor:.2f}",
            )
        console.print(table)
