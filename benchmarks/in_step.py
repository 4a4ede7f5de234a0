"""Eight jobs in step against the same eight one after another: processor time, wall time, memory.

The trainer itself on SmolLM2-135M: rank-16 LoRAs on all linear layers, one row a job and turn. A pair trains the same
steps both ways, in one process, each way first in every other pair. Peak memory is of fresh processes: of eight jobs in
step, and of one, whose turn has the tokens of one row, or as many as the eight's. Writes
benchmarks/results/in_step.json. Run it with OMP_NUM_THREADS=1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.base.catalogue import entry
from core.base.load import NAMES, OpenBase, open_base
from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.methods import METHODS
from core.model import RoutedModel
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.method import LoraSpec
from core.specs.training import TrainSpec
from core.trainer import Run, Step, train

RESULTS = Path("benchmarks/results/in_step.json")
BASE = "smollm2-135m-instruct"
CACHE = Path(".cache/tests")
JOBS = 8
LEARNED = 0.55  # of a row's tokens, as in instruction data
BYTES = 16  # for each adapter parameter: weight, gradient and two moments in fp32
SLACK = 1.05
TARGETS = {64: 1.8, 256: 1.15}  # tokens of a job and turn -> how much less processor time


def run_of(base: OpenBase, number: int, *, tokens: int, rows: int, steps: int) -> Run:
    """One job: rows of so many random tokens in each of its steps."""
    method = LoraSpec(r=16)
    spec = TrainSpec(
        base_model=BASE,
        method=method,
        n_epochs=1,
        batch_size=rows,
        learning_rate=1e-4,
        lr_scheduler="constant",
        warmup_ratio=0,
        weight_decay=0,
        max_grad_norm=1,
        max_seq_length=tokens,
        tokens_per_batch=JOBS * max(TARGETS),
        train_on="assistant",
        eval_steps=None,
        n_checkpoints=1,
        seed=number,
    )
    random = np.random.default_rng(number)
    learned = np.arange(tokens) >= round((1 - LEARNED) * tokens)
    ids = random.integers(100, base.facts.vocabulary, (rows * steps, tokens)).astype(np.int32)
    corpus = Corpus.of(TokenRow(line, row, learned) for line, row in enumerate(ids, start=1))
    generator = torch.Generator().manual_seed(number)
    return Run(spec, METHODS[method.type](method, base.facts, generator=generator), corpus)


def opened() -> tuple[OpenBase, RoutedModel]:
    """The base in this machine's own precision."""
    base = open_base(entry(EMBEDDED_BASE_MODELS, BASE), cache_dir=CACHE, device="cpu", precision="auto")
    return base, RoutedModel(base.model)


def in_step(model: RoutedModel, runs: list[Run]) -> int:
    """How many steps were made."""
    return sum(isinstance(event, Step) for event in train(model, runs))


def one_after_another(model: RoutedModel, runs: list[Run]) -> int:
    """The same steps."""
    return sum(in_step(model, [run]) for run in runs)


def timed(act: Callable[[], int], *, steps: int) -> dict[str, float]:
    """Seconds of all steps, of which there must be so many."""
    wall, processor = time.perf_counter(), time.process_time()
    made = act()
    if made != steps:
        raise RuntimeError(f"{made} steps were made, {steps} expected: a run failed or was skipped")
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}


def pairs(tokens: int, *, count: int, turns: int) -> list[dict[str, Any]]:
    """Both ways in turn, the first of all a warm-up that is not kept."""
    base, model = opened()
    ways = {"in_step": in_step, "one_after_another": one_after_another}
    kept: list[dict[str, Any]] = []
    for number in range(count + 1):
        order = list(ways) if number % 2 else list(reversed(ways))
        pair: dict[str, Any] = {}
        for way in order:
            runs = [run_of(base, job, tokens=tokens, rows=1, steps=turns) for job in range(JOBS)]
            pair[way] = timed(lambda way=way, runs=runs: ways[way](model, runs), steps=JOBS * turns)  # type: ignore[misc]
        if number:
            kept.append(pair)
    return kept


def ratio(found: list[dict[str, Any]], unit: str) -> float:
    """Median over the pairs of how much less the jobs in step took."""
    return float(statistics.median(pair["one_after_another"][unit] / pair["in_step"][unit] for pair in found))


def peak(tokens: int, *, jobs: int, rows: int) -> dict[str, int]:
    """Of this process, after two turns of so many jobs with so many rows each."""
    base, model = opened()
    runs = [run_of(base, job, tokens=tokens, rows=rows, steps=2) for job in range(jobs)]
    in_step(model, runs)
    parameters = sum(parameter.numel() for parameter in runs[0].parameters)
    return {"rss_bytes": own_peak_bytes(), "parameters": parameters}


def own_peak_bytes() -> int:
    """The most that this process has held, by Linux's own book: ru_maxrss would begin with what its parent took."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def fresh_peak(tokens: int, *, jobs: int, rows: int) -> dict[str, int]:
    """The same of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.in_step", "--peak", str(tokens), str(jobs), str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # our own list
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory(tokens: int) -> dict[str, Any]:
    """Peaks, and whether eight in step stay within one, their adapters and five parts in a hundred."""
    eight = fresh_peak(tokens, jobs=JOBS, rows=1)
    one = {name: fresh_peak(tokens, jobs=1, rows=rows)["rss_bytes"] for name, rows in (("row", 1), ("turn", JOBS))}
    adapters = JOBS * eight["parameters"] * BYTES
    return {
        "adapter_parameters": eight["parameters"],
        "in_step_bytes": eight["rss_bytes"],
        "one_job_of_one_row_bytes": one["row"],
        "one_job_of_as_many_tokens_bytes": one["turn"],
        "allowed_over_one_row_bytes": round(SLACK * (one["row"] + adapters)),
        "allowed_over_as_many_tokens_bytes": round(SLACK * (one["turn"] + adapters)),
    }


def measured(tokens: int, *, count: int, turns: int) -> dict[str, Any]:
    """All of one length."""
    found = pairs(tokens, count=count, turns=turns)
    return {
        "tokens": tokens,
        "target_cpu_ratio": TARGETS[tokens],
        "cpu_ratio": ratio(found, "cpu_s"),
        "wall_ratio": ratio(found, "wall_s"),
        "pairs": found,
        "memory": memory(tokens),
    }


def main() -> int:
    """Prints and writes what was found; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--peak", type=int, nargs=3, metavar=("TOKENS", "JOBS", "ROWS"), help="for its own use")
    asked = parser.parse_args()
    if asked.peak:
        tokens, jobs, rows = asked.peak
        sys.stdout.write(json.dumps(peak(tokens, jobs=jobs, rows=rows)) + "\n")
        return 0
    base, _ = opened()
    found = {
        "base_model": BASE,
        "computed_in": NAMES[base.dtype],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "jobs": JOBS,
        "turns": asked.turns,
        "lengths": [measured(tokens, count=asked.pairs, turns=asked.turns) for tokens in asked.tokens],
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    for length in found["lengths"]:
        sys.stdout.write(json.dumps({key: value for key, value in length.items() if key != "pairs"}, indent=2) + "\n")
    return int(any(length["cpu_ratio"] < length["target_cpu_ratio"] for length in found["lengths"]))


if __name__ == "__main__":
    sys.exit(main())
