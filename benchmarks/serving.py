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
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.serving_bench import Bench, Found, console
from benchmarks.serving_exactness import gate, rounding
from benchmarks.serving_show import show
from benchmarks.serving_speed import ablation, mixed, sixteen_rows, vllm
from benchmarks.serving_traffic import cold, many, sparse

RESULTS = Path("benchmarks/results/serving.json")


PARTS: dict[str, Callable[[Bench], Found]] = {
    "sixteen": sixteen_rows,
    "gate": gate,
    "ablation": ablation,
    "mixed": mixed,
    "vllm": vllm,
    "many": many,
    "cold": cold,
    "sparse": sparse,
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
