"""Parts of benchmarks/serving.py about speed: how many tokens a CPU second, beside whom."""

import statistics

from benchmarks.serving_adapters import six_methods, sixteen
from benchmarks.serving_bench import Arm, Bench, Found, Plan, compared, legal_groups, prompts, requests, share

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
