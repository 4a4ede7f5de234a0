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
from benchmarks.serving_bench import Arm, Bench, Found, compared, console, prompts, share
from benchmarks.serving_show import show

RESULTS = Path("benchmarks/results/serving.json")


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


PARTS: dict[str, Callable[[Bench], Found]] = {"sixteen": sixteen_rows, "gate": gate}


def main() -> int:
    """Measure what is asked for, all if nothing is."""
    options = arguments()
    kept: Found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        bench = Bench.of(options, Path(work))
        for part in options.only or PARTS:
            console.print(f"{part}: {PARTS[part].__doc__}")
            kept[part] = about(options) | PARTS[part](bench)
            show(part, kept[part])
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
    told = kept.get("gate")
    return 0 if told is None or (told["equal"] == told["of"] and told["same_in_other_company"]) else 1


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
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"), help="for the converted base model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=16, help="rows of the engine")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every arm")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a row, where all rows have as many")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
