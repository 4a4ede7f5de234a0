"""What the parts of benchmarks/serving.py share: the base and the adapters on disk, and arms that take turns."""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.serving_adapters import Told, write_all
from core.base.catalogue import entry
from core.base.load import open_base
from core.base.prepare import prepare
from core.settings import EMBEDDED_BASE_MODELS

BASE = "smollm2-135m-instruct"
# Threads that do not spin beside a busy neighbour; one GiB of keys and values for vLLM, which would take four.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
WORDS = (1_000, 40_000)  # ids that prompts are drawn from: plain words, no special ones

Found = dict[str, Any]
Plan = dict[str, Any]
Row = dict[str, Any]  # ids, adapter (its number, or None for the base), new (tokens)
console = Console(width=120)


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: which program, and its plan."""

    program: str  # "ours", "peer", "many" or "vllm"
    plan: Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    options: argparse.Namespace
    folder: Path  # the base's, converted
    work: Path  # plans and adapters

    @classmethod
    def of(cls, options: argparse.Namespace, work: Path) -> "Bench":
        """Converts the base if that has not been done."""
        return cls(options, prepare(entry(EMBEDDED_BASE_MODELS, BASE), options.cache).folder, work)

    def written(self, adapters: Sequence[Told], name: str) -> list[str]:
        """PEFT folders of these adapters, written once."""
        facts = open_base(
            entry(EMBEDDED_BASE_MODELS, BASE), cache_dir=self.options.cache, device="cpu", precision="fp32"
        ).facts
        return [str(path) for path in write_all(adapters, facts, self.work / name, BASE)]

    def once(self, arm: Arm) -> Found:
        """What one round of an arm finds."""
        with self._open(arm) as process:
            return _turn(process)

    def in_turns(self, arms: Mapping[str, Arm], rounds: int | None = None) -> dict[str, list[Found]]:
        """Every arm once a round, each in a process that stays: what it loads and warms up is not counted."""
        found: dict[str, list[Found]] = {name: [] for name in arms}
        with ExitStack() as stack:
            processes = {name: stack.enter_context(self._open(arm)) for name, arm in arms.items()}
            for number in range(rounds or self.options.rounds):
                for name, process in processes.items():
                    found[name].append(one := _turn(process))
                    told = f"{one['tokens'] / one['cpu_s']:.1f} tokens a CPU second, load {os.getloadavg()[0]:.1f}"
                    console.print(f"  round {number + 1} {name}: {told}")
        return found

    @contextmanager
    def _open(self, arm: Arm) -> Iterator["subprocess.Popen[str]"]:
        with tempfile.NamedTemporaryFile("w", dir=self.work, suffix=".json", delete=False) as file:
            json.dump(self._shared() | dict(arm.plan), file)
        python = self.options.vllm_python if arm.program == "vllm" else sys.executable
        told = ENVIRONMENT | {"OMP_NUM_THREADS": str(self.options.threads)}
        command = [python, "-m", f"benchmarks.serving_{arm.program}", file.name]
        with (
            Path(f"{file.name}.log").open("w+") as log,
            subprocess.Popen(
                command, env=os.environ | told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            if _line(process) != "ready":
                raise RuntimeError(f"{arm.program} was not ready:\n{Path(log.name).read_text()[-3000:]}")
            yield process
            assert process.stdin is not None
            process.stdin.close()

    def _shared(self) -> Plan:
        return {
            "base_model": BASE,
            "cache": str(self.options.cache),
            "folder": str(self.folder),
            "precision": self.options.precision,
            "threads": self.options.threads,
            "width": self.options.width,
            "context": 256,
            "adapters": [],
        }


def _turn(process: "subprocess.Popen[str]") -> Found:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    found = _line(process)
    if not isinstance(found, dict):
        raise RuntimeError("an arm ended within a round: run it by hand with the plan in its command to see why")  # noqa: TRY004
    return found


def _line(process: "subprocess.Popen[str]") -> Any:  # noqa: ANN401 - JSON
    assert process.stdout is not None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Prompts of these lengths, the same for all arms."""
    draw = random.Random(seed)
    return [[draw.randint(*WORDS) for _ in range(length)] for length in lengths]


def requests(count: int, adapters: int, popularity: str) -> list[Row]:
    """Rows of ragged prompts and answers, one in eight of the base, the others' adapters uniform or Zipf's, slope 1."""
    draw = random.Random(7)
    weights = [1.0 if popularity == "uniform" else 1 / (n + 1) for n in range(adapters)]
    worn = [None if draw.random() < 1 / 8 else draw.choices(range(adapters), weights)[0] for _ in range(count)]
    words = prompts([draw.randint(8, 64) for _ in range(count)], seed=8)
    return [{"ids": ids, "adapter": a, "new": draw.randint(8, 48)} for ids, a in zip(words, worn, strict=True)]


def legal_groups(rows: Sequence[Row], kinds: Sequence[str], width: int = 16) -> list[list[int]]:
    """What PEFT may run in one `generate`: rows of LoRA and of the base mixed, others by adapter."""
    shared: dict[object, list[int]] = {}
    for number, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        shared.setdefault("lora" if kind in {"lora", "qlora", "base"} else row["adapter"], []).append(number)
    ordered = (sorted(group, key=lambda n: rows[n]["new"]) for group in shared.values())
    return [group[at : at + width] for group in ordered for at in range(0, len(group), width)]


def compared(found: Mapping[str, Sequence[Found]], ours: str) -> dict[str, Found]:
    """Medians of every arm, and of our rate over its own within a round, with that ratio's least and greatest."""
    arms = {}
    for name, rounds in found.items():
        rates = [one["tokens"] / one["cpu_s"] for one in rounds]
        mine = [one["tokens"] / one["cpu_s"] for one in found[ours]]
        ratios = sorted(m / r for m, r in zip(mine, rates, strict=True))
        arms[name] = {
            "tokens_per_cpu_s": statistics.median(rates),
            "tokens_per_s": statistics.median(one["tokens"] / one["wall_s"] for one in rounds),
            "decode_tokens_per_cpu_s": statistics.median(decoding(one) for one in rounds),
            "ours_over_it": statistics.median(ratios),
            "least": ratios[0],
            "greatest": ratios[-1],
            "rounds": len(rounds),
        }
    return arms


def decoding(found: Found) -> float:
    """Tokens a CPU second of steps without prompts."""
    return float(found["decode_tokens"] / found["decode_s"])


def share(found: Mapping[str, Sequence[Found]], over: str, under: str) -> float:
    """Median of two arms' decode rates over one another, within a round."""
    return statistics.median(decoding(a) / decoding(b) for a, b in zip(found[over], found[under], strict=True))
