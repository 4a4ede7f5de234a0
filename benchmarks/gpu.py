"""All that a CUDA device has to show, in one run: tests marked gpu, kernels, decode steps, many adapters, stock PEFT.

`python -m benchmarks.gpu [--shape small]` prints tables and writes benchmarks/results/gpu.json. Without a CUDA device
it measures nothing, says so and ends with 2; where a test or a comparison fails it ends with 1.

The decode step is that of Llama-3.1-8B's shape with random weights (or of a small one) in bf16, at a context of 1,024:
the bare base; 64 adapters of rank 16 on every linear layer; the same on q and v; rows of all effects mixed; and the
bare base and the adapters in NF4. Each runs one by one and as a recorded step, in turns. Beside them stand steps of
stock transformers and PEFT of the same shape and rows (gpu_peer.py), and rows through the engine of 2,000 registered
adapters, of which 64 fit on the device (gpu_many.py). All sizes are options. The last line is one of JSON: the lora
step's rate of the base's, the bound of the bytes that both read, and of PEFT's; how flat 2,000 adapters are beside as
many as fit; and what the slowest hundredth of times between tokens is of the middle one there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_kernels, gpu_many, gpu_peer
from core.base.facts import facts_of
from core.base.nf4 import quantise_linears
from core.cache import KVCache
from core.cuda_graph import CudaGraph, GraphMemory
from core.decode import StillStep
from core.effects import Effect, KVPrefix, LowRank
from core.model import RoutedModel
from core.packed_model import pack_model
from core.routing import tensors_of

Found = dict[str, Any]
RESULTS = Path("benchmarks/results/gpu.json")
NOTHING = "no CUDA device: torch finds none on this machine, so nothing was measured and no result was written"
SHAPES: dict[str, Any] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "small": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
              "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip
BYTES = {"bf16": 2.0, "nf4": 0.5 + 1 / 64}  # of one weight; in NF4 its block's scale among them
CONTEXT, ROWS, RANK = 1024, 64, 16
console = Console(width=120)


def main() -> int:
    """What is asked for, or why nothing was."""
    options = arguments()
    if not torch.cuda.is_available():
        print(NOTHING, file=sys.stderr)
        return 2
    found: Found = {"about": about(), "constants": gpu_kernels.constants()}
    found["tests"] = {
        "passed": subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu"], check=False).returncode == 0
    }
    with torch.inference_mode():
        found["low_rank"] = gpu_kernels.low_rank(1e9 * found["constants"]["copied_gb_per_s"])
        found["decoding"] = gpu_kernels.decoding()
        found["four_bits"] = gpu_kernels.four_bits()
        found["steps"] = steps(options.shape, options.rounds)
    found["many"] = gpu_many.many(opened(options.shape, "bf16"), sizes_of(options))
    torch.cuda.empty_cache()
    how: Found = {"device": "cuda", "dtype": torch.bfloat16, "rows": ROWS, "rank": RANK, "context": CONTEXT}
    found["peft"] = gpu_peer.peer(SHAPES[options.shape], steps=options.peft_steps, **how)
    for part in ("low_rank", "decoding", "four_bits", "steps", "peft", "many"):
        show(part, found[part])
    found["metric"] = metric(found)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["metric"]))
    print(f"written to {RESULTS}; the tests marked gpu {'passed' if found['tests']['passed'] else 'FAILED'}")
    return 0 if found["tests"]["passed"] and all(row["is_same"] for row in found["steps"]) else 1


def steps(shape: str, rounds: int) -> list[Found]:
    """Milliseconds of a decode step of ROWS rows, one by one and recorded; and whether both say the same."""
    found: list[Found] = []
    for precision in ("bf16", "nf4"):
        model = opened(shape, precision)
        plans = plans_of(model)
        found.extend(
            {"precision": precision, "rows": ROWS, "worn": name, "bound": bound(model, plans[name], precision)}
            | one_step(model, plans[name], rounds)
            for name in (plans if precision == "bf16" else ("base", "lora"))
        )
        del model, plans
        torch.cuda.empty_cache()
    return found


def opened(shape: str, precision: str) -> RoutedModel:
    """Random weights of one shape, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), torch.inference_mode(mode=False):
        base = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=2 * CONTEXT))
    torch.set_default_dtype(torch.float32)
    if precision == "nf4":
        head = base.lm_head
        quantise_linears(base, head=head, device=torch.device("cuda"), dtype=torch.bfloat16)
    model = RoutedModel(base)
    pack_model(model)
    return model


def plans_of(model: RoutedModel) -> dict[str, list[Effect | None]]:
    """What each of ROWS rows wears."""
    every, few = [lora(model, n, "") for n in range(ROWS)], [lora(model, n, "qv") for n in range(ROWS)]
    facts = facts_of(model.base)
    shape = (facts.layers, 16, facts.kv_heads, facts.head_width)
    prefix = model.resident(KVPrefix(*(torch.randn(shape, device="cuda") for _ in range(2))))
    mixed = [(every[n], few[n], prefix, None)[n % 4] for n in range(ROWS)]
    return {"base": [None] * ROWS, "lora": [*every], "lora q and v": [*few], "mixed": mixed}


def bound(model: RoutedModel, worn: Sequence[Effect | None], precision: str) -> float:
    """The part of the bare base's rate that the bytes allow: its weights', beside those of the distinct adapters."""
    linear = sum(i * o for i, o in (site.widths for site in model.sites.values()))
    weights = linear * BYTES[precision] + model.head.weight.numel() * model.dtype.itemsize
    distinct = {id(e): e for e in worn if isinstance(e, LowRank)}.values()
    return weights / (weights + sum(t.numel() * t.element_size() for e in distinct for t in tensors_of(e)))


def metric(found: Found) -> Found:
    """What one line says of the run."""
    steps = {(row["precision"], row["worn"]): row for row in found["steps"]}
    arms, peft = ({row[key]: row for row in found[part]} for part, key in (("many", "arm"), ("peft", "worn")))
    ours, all_of_them = steps["bf16", "lora"], arms["registered, Zipf"]
    ratio = ours["tokens_per_s"] / steps["bf16", "base"]["tokens_per_s"]
    return {
        "ratio_base": ratio,
        "bound": ours["bound"],
        "ratio_over_bound": ratio / ours["bound"],
        "ratio_peft": ours["tokens_per_s"] / peft["lora"]["tokens_per_s"],
        f"flatness_{all_of_them['adapters']}": all_of_them["tokens_per_s"] / arms["as many as fit"]["tokens_per_s"],
        "itl_p99_over_p50_cold": all_of_them["between_p99_ms"] / all_of_them["between_p50_ms"],
    }


def lora(model: RoutedModel, seed: int, kinds: str) -> Effect:
    """A random one of RANK on every linear layer, or on those whose names begin with one of kinds."""
    made = torch.Generator(device="cuda").manual_seed(seed)
    sites = {n: s.widths for n, s in model.sites.items() if not kinds or n.rpartition(".")[2][0] in kinds}
    a = {n: torch.randn(RANK, i, generator=made, device="cuda") / i**0.5 for n, (i, _) in sites.items()}
    b = {n: torch.randn(o, RANK, generator=made, device="cuda") / 100 for n, (_, o) in sites.items()}
    return model.resident(LowRank(a, b, dict.fromkeys(sites, 1.0)))


def one_step(model: RoutedModel, worn: Sequence[Effect | None], rounds: int) -> Found:
    """One plan's step, run in turns: one by one, recorded."""
    cache = KVCache.for_model(model, ROWS, CONTEXT + 8)
    slots = [cache.take() or 0 for _ in worn]
    cache.keys.normal_()
    cache.values.normal_()
    cache.lengths[:] = [CONTEXT] * ROWS
    step = StillStep(model, cache, ROWS, is_bare=not any(isinstance(e, LowRank) for e in worn))
    step.fill([7 + n for n in range(ROWS)], slots, worn)
    graph = CudaGraph(step.run, model.device, GraphMemory())
    expected, here = step.run().clone(), graph.replay().clone()
    times: dict[str, list[float]] = {"one_by_one_ms": [], "recorded_ms": []}
    for _ in range(rounds):
        for name, run in (("one_by_one_ms", step.run), ("recorded_ms", graph.replay)):
            times[name].append(milliseconds(run))
    told = {name: statistics.median(all_of) for name, all_of in times.items()}
    return told | {
        "tokens_per_s": 1000 * ROWS / told["recorded_ms"],
        "is_same": bool(torch.allclose(expected.float(), here.float(), atol=1e-2, rtol=1e-2)),
    }


def milliseconds(run: Callable[[], object], times: int = 50) -> float:
    """Of one run, the host's time among it."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / times


def show(title: str, rows: Sequence[Found]) -> None:
    """A table of what was found."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(worded(value) for value in row.values()))
    console.print(table)


def worded(value: object) -> str:
    """A value in few characters."""
    match value:
        case {"us": us, "error": error}:
            return f"{us:.1f} us, off by {error:.2g}"
        case {"failed": reason}:
            return str(reason)[:40]
        case float():
            return f"{value:.3g}"
    return str(value)


def about() -> Found:
    """What a figure depends on beside the programs."""
    import transformers  # noqa: PLC0415

    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "memory_gib": device.total_memory / (1 << 30),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every decode step")
    parser.add_argument("--peft-steps", type=int, default=10, help="steps of stock PEFT")
    for field in fields(gpu_many.Sizes):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=int, default=field.default, help="of many adapters"
        )
    return parser.parse_args()


def sizes_of(options: argparse.Namespace) -> gpu_many.Sizes:
    """Of the part with many adapters."""
    return gpu_many.Sizes(**{field.name: getattr(options, field.name) for field in fields(gpu_many.Sizes)})


if __name__ == "__main__":
    sys.exit(main())
