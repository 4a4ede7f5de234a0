"""Parts of benchmarks/serving.py about traffic: adapters that come and go, and rows that come one by one."""

import random
import statistics

from benchmarks.serving_adapters import six_methods
from benchmarks.serving_bench import Arm, Bench, Found, Plan, compared, prompts, requests

LOADS = (0.3, 0.6)  # of what one engine of all methods can do


def many(bench: Bench) -> Found:
    """2,000 registered adapters by Zipf beside sixteen, from files, where 64 fit in memory: rate, loads, memory.

    Each round asks for others than the one before it, so that some are in memory and some are not.
    """
    count, turns = 6 * bench.options.width, bench.options.rounds + 1  # the first warms up
    small = 4 * 4 * 30 * (576 + 576 + 576 + 192)  # bytes of one: rank 4 on q and v of 30 layers
    groups = [list(range(turn * count, (turn + 1) * count)) for turn in range(turns)]
    arms = {}
    for name, adapters in (("two_thousand", 2000), ("sixteen", 16)):
        rows = [row | {"new": 16} for row in requests(count * turns, adapters, "zipf")]
        shared = {"rows": rows, "groups": groups, "registry": str(bench.work / name)}
        arms[name] = Arm("many", {"arm": "many", "adapter_bytes": 64 * small} | shared)
    found = bench.in_turns(arms)
    rows = [
        {"arm": name, "round": n + 1, **{k: one[k] for k in ("distinct", "loads", "rss_mb")}}
        for name, rounds in found.items()
        for n, one in enumerate(rounds)
    ]
    told = compared(found, "two_thousand")
    return {"arms": told, "rows": rows, "of_sixteen": told["sixteen"]["ours_over_it"]}


def cold(bench: Bench) -> Found:
    """Others' time between tokens while rows arrive: with adapters that are in memory, and with ones that are not."""
    words = prompts([16] * 16)
    rows = [{"ids": ids, "adapter": n, "new": 32} for n, ids in enumerate(words)]
    rows[-1]["new"] = 4
    found = bench.in_turns({"cold": Arm("many", {"arm": "cold", "rows": rows, "groups": [list(range(16))]})})["cold"]
    ratios = [one["cold"]["p99_ms"] / one["warm"]["p99_ms"] for one in found]
    return {
        "rows": [
            {"arrives": kind, "round": n + 1, **one[kind]} for n, one in enumerate(found) for kind in ("warm", "cold")
        ],
        "p99_of_without": statistics.median(ratios),
    }


def sparse(bench: Bench) -> Found:
    """Rows that come one by one, at 0.3 and 0.6 of what one engine can do: one engine, or one for each method."""
    kinds = six_methods(64)
    made = bench.written(kinds, "mixed")
    rows = requests(bench.options.requests, len(kinds), "zipf")
    plan: Plan = {"arm": "batch", "adapters": made, "rows": rows, "groups": [list(range(len(rows)))]}
    full = bench.once(Arm("ours", plan))
    methods = sorted({told["type"] for told in kinds})
    # LoRA's engine serves the base as well.
    worn = ["lora" if row["adapter"] is None else kinds[row["adapter"]]["type"] for row in rows]
    own = [methods.index(kind) for kind in worn]
    found: Found = {"rows": [], "requests": len(rows), "full_tokens_per_cpu_s": full["tokens"] / full["cpu_s"]}
    for load in LOADS:
        plan |= {"arm": "sparse", "arrivals": _poisson(len(rows), load * len(rows) / full["cpu_s"])}
        arms = {
            name: Arm("sparse", plan | {"engine_of": of})
            for name, of in (("one", [0] * len(rows)), ("one a method", own))
        }
        for name, rounds in bench.in_turns(arms).items():
            found["rows"].append({"load": load, "engines": name} | _traffic(rounds))
    return found


def _poisson(count: int, a_second: float) -> list[float]:
    draw, at = random.Random(11), 0.0
    return [at := at + draw.expovariate(a_second) for _ in range(count)]


def _traffic(rounds: list[Found]) -> Found:
    """Medians over the rounds."""
    told = {"tokens_per_cpu_s": statistics.median(one["tokens"] / one["cpu_s"] for one in rounds)}
    for name in ("first_token", "between_tokens"):
        for point in ("p50_ms", "p99_ms"):
            told[f"{name}_{point}"] = statistics.median(one[name][point] for one in rounds)
    return told | {"memory_mb": max(one["memory_mb"] for one in rounds)}
