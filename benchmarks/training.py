"""Training speed and memory: our trainer beside TRL with PEFT, on SmolLM2-135M and GSM8K, part by part.

Every arm is a fresh process with passive OpenMP waiting, and arms take turns (A B A B …), so that a busy machine slows
all alike. Both sides see the same token ids in the same order, start from the same A and learn at the same rate. The
primary arm computes in fp32, as both do well on any CPU; a CPU without AVX512-BF16 multiplies bf16 tens of times more
slowly, so there a bf16 figure says more of the machine than of either program.

Prints tables and writes benchmarks/results/training.json, in which a part that is measured anew replaces its old
figures. Ends with 1 where losses differ by more than rounding allows.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training_bench import BASE, LORA, Arm, Bench, Found, compared, console, ours, peer, show
from benchmarks.training_goal import to_loss
from core.base.catalogue import entry
from core.base.load import open_tokenizer
from core.base.prepare import prepare
from core.data.tokens import encode_all
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.dataset import PromptExample

RESULTS = Path("benchmarks/results/training.json")
ROWS = 240  # of the data, as many as any part reads
ROW = 176  # tokens: a packed row holds about as many of these as our step has rows, so that both have as much in flight
PEER_VIRTUAL: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 20},
    "prefix_tuning": {"num_virtual_tokens": 16, "prefix_projection": True, "encoder_hidden_size": 512},
    "p_tuning": {"num_virtual_tokens": 20, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 288},
}
OUR_METHODS = ("lora", "qlora", "adalora", "prefix_tuning", "prompt_tuning", "p_tuning")
TRICKS = (
    "one node a layer",
    "frugal norms",
    "frugal blocks",
    "explicit attention",
    "head of learned tokens",
)
LIMITS = {"fp32": 1e-5, "bf16": 5e-3}  # relative difference of losses


def sft(bench: Bench) -> Found:
    """Tokens a second and memory in fp32: ours, TRL's defaults, TRL at its best."""
    steps, rows = bench.options.steps, bench.options.batch
    packed = {"packing": True, "max_length": ROW * rows, "gradient_checkpointing": False}
    arms = {
        "ours": ours(LORA, "fp32", steps, rows, floor=True),
        "trl_best": peer(LORA, "fp32", steps, 1, packed),
        "trl_default": peer(LORA, "fp32", steps, rows, {}),
    }
    return compared(bench.in_turns(arms, bench.options.rounds), "ours") | {"rows_a_step": rows}


def losses(bench: Bench) -> Found:
    """The first twenty losses of both, in fp32: same rows, one a step, same order, no packing."""
    arms = {"ours": ours(LORA, "fp32", 20, 1), "trl": peer(LORA, "fp32", 20, 1, {"gradient_checkpointing": False})}
    found = {name: bench.found(arm)["losses"] for name, arm in arms.items()}
    apart = [abs(a - b) / abs(b) for a, b in zip(found["ours"], found["trl"], strict=True)]
    return found | {"greatest_relative_difference": max(apart), "limit": LIMITS["fp32"]}


def bf16(bench: Bench) -> Found:
    """Both in bf16, and ours as it chooses by itself on this machine. Two rows: a CPU may be very slow at it."""
    arms = {
        "ours_as_chosen": ours(LORA, "auto", 3, 1),
        "ours_bf16": ours(LORA, "bf16", 3, 1),
        "trl_default_bf16": peer(LORA, "bf16", 3, 1, {}),
    }
    found = compared(bench.in_turns(arms, 1), "ours_as_chosen")
    first, second = (found["arms"][name]["losses"] for name in ("ours_bf16", "trl_default_bf16"))
    apart = [abs(a - b) / abs(b) for a, b in zip(first, second, strict=True)]
    return found | {"greatest_relative_difference": max(apart), "limit": LIMITS["bf16"]}


def head(bench: Bench) -> Found:
    """The loss head alone: 49,152 words, 55 % of the tokens learned."""
    plan = {"arm": "head", "precision": "fp32", "tokens": 1024}
    arms = {
        "ours": Arm("ours", plan),
        "trl_chunked": Arm("peer", plan),
        "full_logits": Arm("peer", plan | {"full": True}),
        "ours_bf16": Arm("ours", plan | {"precision": "bf16", "tokens": 256}),
    }
    return compared(bench.in_turns(arms, bench.options.rounds), "ours")


def virtual(bench: Bench) -> Found:
    """Prompt, prefix and P-tuning beside TRL: padded, for packing mixes their rows, and without checkpointing."""
    found = {}
    for name, told in PEER_VIRTUAL.items():
        arms = {
            "ours": ours({"type": name}, "fp32", bench.options.steps, 4),
            "trl": peer({"type": name} | told, "fp32", bench.options.steps, 4, {"gradient_checkpointing": False}),
        }
        found[name] = compared(bench.in_turns(arms, bench.options.rounds), "ours")
    return found


def methods(bench: Bench) -> Found:
    """What each of our methods costs beside plain LoRA, QLoRA's base in 4 bits among them."""
    arms = {name: ours({"type": name}, "fp32", 4, 4) for name in OUR_METHODS}
    return compared(bench.in_turns(arms, bench.options.rounds), "lora")


def ablation(bench: Bench) -> Found:
    """Our LoRA step with one trick at a time put back to its plain form."""
    arms = {"all": ours(LORA, "fp32", 4, 4)}
    arms |= {f"without {trick}": ours(LORA, "fp32", 4, 4, without=[trick]) for trick in TRICKS}
    arms["without any"] = ours(LORA, "fp32", 4, 4, without=list(TRICKS))
    return compared(bench.in_turns(arms, bench.options.rounds), "all")


PARTS: dict[str, Callable[[Bench], Found]] = {
    "sft": sft,
    "losses": losses,
    "head": head,
    "bf16": bf16,
    "virtual": virtual,
    "methods": methods,
    "ablation": ablation,
    "to_loss": to_loss,
}


def main() -> int:
    """Measure what is asked for, all if nothing is."""
    options = arguments()
    if not options.data.exists():
        console.print(f"{options.data} is not here: put GSM8K's training rows there, or name them with --data")
        return 2
    kept: Found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        base = entry(EMBEDDED_BASE_MODELS, BASE)
        bench = Bench(options, prepare(base, options.cache).folder, Path(work))
        write_rows(options, bench.work / "rows.json")
        for part in options.only or PARTS:
            console.print(f"{part}: {PARTS[part].__doc__}")
            kept[part] = PARTS[part](bench)
            show(part, kept[part])
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(
                json.dumps({**kept, "cores": os.cpu_count(), "threads": options.threads}, indent=2) + "\n"
            )
    gated = [kept[part] for part in ("losses", "bf16") if part in kept]
    return 0 if all(g["greatest_relative_difference"] <= g["limit"] for g in gated) else 1


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/train_2000.jsonl"))
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--peer-python", default=sys.executable, help="of an environment with torch, trl and peft")
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"), help="for the converted base model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every arm")
    parser.add_argument("--steps", type=int, default=4, help="of an arm, the first of which is not counted")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step of the part sft")
    parser.add_argument("--together", action="store_true", help="a round's arms at once, where turns would take hours")
    parser.add_argument("--quick", action="store_true", help="one round of two steps: to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 1, 2
    return options


def write_rows(options: argparse.Namespace, file: Path) -> None:
    """The first rows as token ids, and which of them are learned."""
    tokenizer = open_tokenizer(entry(EMBEDDED_BASE_MODELS, BASE), cache_dir=options.cache)
    lines = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()[:ROWS]]
    examples = [PromptExample(prompt=line["question"] + "\n", completion=line["answer"]) for line in lines]
    rows = encode_all(enumerate(examples, 1), tokenizer, train_on="assistant", max_tokens=1024)
    file.write_text(json.dumps([{"ids": row.ids.tolist(), "learned": row.learned.tolist()} for row in rows]))


if __name__ == "__main__":
    sys.exit(main())
