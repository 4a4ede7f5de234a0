"""Parts of benchmarks/serving.py about what is said: token for token stock PEFT's, and what bf16 rounds away."""

import torch

from benchmarks.serving_adapters import six_methods
from benchmarks.serving_bench import Arm, Bench, Found, prompts


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
