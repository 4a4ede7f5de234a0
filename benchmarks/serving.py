"""Serving speed: our engine beside Hugging Face `generate` and stock PEFT on SmolLM2-135M, part by part.

Every arm is a process of its own and arms take turns (A B A B …), so that a busy machine slows all alike. Figures are
of processes' own CPU seconds, one thread each unless told otherwise. All arms serve the same adapter files and run the
same token ids for the same number of new tokens. The primary arm computes in fp32: a CPU without AVX512-BF16 multiplies
bf16 tens of times more slowly, so there a bf16 figure says more of the machine than of either program.

Prints tables and writes benchmarks/results/serving.json, in which a part that is measured anew replaces its old
figures. Ends with 1 where the gate's tokens are not those of stock PEFT run alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.serving_adapters import six_methods, sixteen
from benchmarks.serving_bench import Arm, Bench, Found, Plan, compared, console, legal_groups, prompts, requests, share
from benchmarks.serving_show import show

RESULTS = Path("benchmarks/results/serving.json")
TRICKS = ("pages", "packing", "siblings")


def sixteen_rows(bench: Bench) -> Found:
    """Sixteen rows by sixteen LoRA adapters, beside the base alone, PEFT's `adapter_names` and `generate`."""
    made = bench.written(sixteen(), "sixteen")
    words = prompts([16] * 16)
    worn = [{"ids": ids, "adapter": n, "new": bench.options.new} for n, ids in enumerate(words)]
    bare = [row | {"adapter": None} for row in worn]
    shared = {"arm": "batch", "adapters": made, "groups": [list(range(16))]}
    found = bench.in_turns(
        {
            "ours": Arm("ours", shared | {"rows": worn}),
            "ours_base": Arm("ours", shared | {"rows": bare, "floor": True}),
            "peft_adapter_names": Arm("peer", shared | {"rows": worn}),
            "generate_base": Arm("peer", shared | {"rows": bare}),
        }
    )
    sizes = found["ours"][0]["parameters"]
    bound = sizes["base"] / (sizes["base"] + sizes["adapters"])
    of_base = share(found, "ours", "ours_base")
    floors = [one["floor_s"] * one["decode_tokens"] / (16 * one["decode_s"]) for one in found["ours_base"]]
    return {
        "arms": compared(found, "ours"),
        "byte_bound": bound,
        "of_base_decoding": of_base,
        "of_bound": of_base / bound,
        "floor_tokens_per_cpu_s": 16 / statistics.median(one["floor_s"] for one in found["ours_base"]),
        "base_of_floor": statistics.median(floors),
        "base_over_generate": compared(found, "ours_base")["generate_base"]["ours_over_it"],
        "same_tokens_as_peft": found["ours"][0]["ids"] == found["peft_adapter_names"][0]["ids"],
    }


def gate(bench: Bench) -> Found:
    """In fp32, greedy tokens of rows of all methods in one batch: stock PEFT's alone, and the same in another order."""
    kinds = six_methods(12)
    made = bench.written(kinds, "gate")
    words = prompts([8 + 5 * (n % 5) for n in range(14)], seed=1)
    rows = [{"ids": ids, "adapter": n if n < len(kinds) else None, "new": 16} for n, ids in enumerate(words)]
    plan = {"adapters": made, "rows": rows, "precision": "fp32", "arm": "batch"}
    order = list(reversed(range(len(rows))))
    ours = bench.once(Arm("ours", plan | {"groups": [list(range(len(rows)))]}))["ids"]
    moved = bench.once(Arm("ours", plan | {"groups": [order[:5], order[5:]]}))["ids"]
    bare = bench.once(Arm("ours", plan | {"groups": [order], "rows": [row | {"adapter": None} for row in rows]}))["ids"]
    alone = bench.once(Arm("peer", plan | {"arm": "alone"}))["ids"]
    names = [*(told["type"] for told in kinds), "base", "base"]
    equal = [mine == theirs for mine, theirs in zip(ours, alone, strict=True)]
    return {
        "rows": [{"method": name, "is_equal": bool(e)} for name, e in zip(names, equal, strict=True)],
        "equal": sum(equal),
        "of": len(rows),
        "of_them_unlike_the_base": sum(a != b for a, b in zip(ours, bare, strict=True)),
        "precision": "fp32",
        "new_tokens": 16,
        "same_in_other_company": ours == moved,
    }


def ablation(bench: Bench) -> Found:
    """Our sixteen rows with one trick at a time put back to its plain form."""
    words = prompts([16] * 16)
    worn = [{"ids": ids, "adapter": n, "new": bench.options.new} for n, ids in enumerate(words)]
    shared: Plan = {"arm": "batch", "adapters": bench.written(sixteen(), "sixteen"), "groups": [list(range(16))]}
    bare = shared | {"rows": [row | {"adapter": None} for row in worn]}
    shared |= {"rows": worn}
    arms = {"all": Arm("ours", shared)}
    arms |= {f"without {trick}": Arm("ours", shared | {"without": [trick]}) for trick in TRICKS}
    arms |= {"base": Arm("ours", bare)}
    arms |= {f"base without {trick}": Arm("ours", bare | {"without": [trick]}) for trick in TRICKS[1:]}
    return {"arms": compared(bench.in_turns(arms), "all")}


def mixed(bench: Bench) -> Found:
    """64 adapters of six methods and base rows: one batch, PEFT's best legal groups, ours at these, one per method."""
    kinds = six_methods(64)
    made = bench.written(kinds, "mixed")
    return {
        popularity: _mixed(bench, [told["type"] for told in kinds], made, popularity)
        for popularity in ("uniform", "zipf")
    }


def _mixed(bench: Bench, kinds: list[str], made: list[str], popularity: str) -> Found:
    rows = requests(bench.options.requests, len(kinds), popularity)
    names = ["base" if row["adapter"] is None else kinds[row["adapter"]] for row in rows]
    legal = legal_groups(rows, names)
    plan = {"arm": "batch", "adapters": made, "rows": rows}
    whole, by_method = [list(range(len(rows)))], [[n for n, k in enumerate(names) if k == kind] for kind in set(names)]
    found = bench.in_turns(
        {
            "ours": Arm("ours", plan | {"groups": whole}),
            "ours_base": Arm("ours", plan | {"groups": whole, "rows": [row | {"adapter": None} for row in rows]}),
            "peft_best_legal": Arm("peer", plan | {"groups": legal}),
            "ours_at_peft_groups": Arm("ours", plan | {"groups": legal}),
            "one_batch_per_method": Arm("ours", plan | {"groups": by_method}),
        }
    )
    return {"arms": compared(found, "ours"), "mean_rows_of_a_peft_group": len(rows) / len(legal)}


def rounding(bench: Bench) -> Found:
    """Logits of bf16 held against fp32's, for one adapter of each method: the error over the logits' own spread."""
    kinds = six_methods(12)
    first = {told["type"]: n for n, told in reversed(list(enumerate(kinds)))}
    worn = [*first.values(), None]
    rows = [{"ids": ids, "adapter": n, "new": 1} for n, ids in zip(worn, prompts([24] * len(worn), 2), strict=True)]
    plan = {"arm": "logits", "adapters": bench.written(kinds, "gate"), "rows": rows}
    fine, coarse = (
        torch.tensor(bench.once(Arm("ours", plan | {"precision": precision}))["logits"])
        for precision in ("fp32", "bf16")
    )
    error = (fine - coarse).pow(2).mean(1).sqrt() / fine.std(1)
    greatest, agree = (fine - coarse).abs().amax(1), fine.argmax(1) == coarse.argmax(1)
    return {
        "precision": "bf16 against fp32",
        "rows": [
            {"method": name, "error_over_spread": float(e), "greatest": float(g), "is_same_token": bool(a)}
            for name, e, g, a in zip([*first, "base"], error, greatest, agree, strict=True)
        ],
    }


def many(bench: Bench) -> Found:
    """2,000 registered adapters by Zipf beside sixteen, where 64 fit in memory: rate, loads, what the process holds."""
    count = 6 * bench.options.width
    small = 4 * 4 * 30 * (576 + 576 + 576 + 192)  # bytes of one: rank 4 on q and v of 30 layers
    arms = {}
    for name, adapters in (("two_thousand", 2000), ("sixteen", 16)):
        rows = [row | {"new": 16} for row in requests(count, adapters, "zipf")]
        plan = {"arm": "many", "rows": rows, "groups": [list(range(count))], "adapter_bytes": 64 * small}
        arms[name] = Arm("many", plan)
    found = bench.in_turns(arms)
    rows = [
        {"arm": name, "round": n + 1, **{k: one[k] for k in ("loads", "failed", "rss_mb")}}
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


def vllm(bench: Bench) -> Found:
    """The sixteen rows by vLLM, where --vllm-python names an environment that has it."""
    if bench.options.vllm_python is None:
        return {"skipped": "--vllm-python named no environment with vllm and psutil"}
    words = prompts([16] * 16)
    rows = [{"ids": ids, "adapter": n, "new": bench.options.new} for n, ids in enumerate(words)]
    bare = [row | {"adapter": None} for row in rows]
    shared = {"arm": "batch", "adapters": bench.written(sixteen(), "sixteen"), "groups": [list(range(16))]}
    found = bench.in_turns(
        {
            "ours": Arm("ours", shared | {"rows": rows}),
            "ours_base": Arm("ours", shared | {"rows": bare}),
            "vllm": Arm("vllm", shared | {"rows": rows}),
            "vllm_base": Arm("vllm", shared | {"rows": bare}),
        }
    )
    return {
        "arms": compared(found, "ours"),
        "base_over_vllm_base": compared(found, "ours_base")["vllm_base"]["ours_over_it"],
    }


PARTS: dict[str, Callable[[Bench], Found]] = {
    "sixteen": sixteen_rows,
    "gate": gate,
    "ablation": ablation,
    "mixed": mixed,
    "vllm": vllm,
    "many": many,
    "cold": cold,
    "rounding": rounding,
}


def main() -> int:
    """Measure what is asked for, all if nothing is."""
    options = arguments()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench.of(options, Path(work))
        for part in options.only or PARTS:
            console.print(f"{part}: {PARTS[part].__doc__}")
            found = about(options) | PARTS[part](bench)
            show(part, found)
            kept = results() | {part: found}
            RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
    told = results().get("gate")
    return 0 if told is None or (told["equal"] == told["of"] and told["same_in_other_company"]) else 1


def results() -> Found:
    """What is kept so far: read anew each time, for another part may be measured beside this one."""
    found: Found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def about(options: argparse.Namespace) -> Found:
    """What a figure depends on beside the programs."""
    return {
        "precision": options.precision,
        "threads": options.threads,
        "new_tokens": options.new,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "has_avx512_bf16": "avx512_bf16" in Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else None,
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--vllm-python", help="of an environment with vllm and psutil")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"), help="for the converted base model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=16, help="rows of the engine")
    parser.add_argument("--requests", type=int, default=64, help="of the part mixed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every arm")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a row, where all rows have as many")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
