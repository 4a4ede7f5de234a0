"""The sixteen rows of benchmarks/serving.py by vLLM, in an environment of its own. Knows nothing of Graft.

`PYTHON -m benchmarks.serving_vllm PLAN.json`, a round for every line it reads. vLLM works in processes of its own, so
its CPU seconds are those of this process and of all its children. Speed only: on CPUs its base rows wear an adapter.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def cpu_s() -> float:
    """Of this process and everything that it started and that still runs."""
    me = psutil.Process()
    return float(sum(p.cpu_times().user + p.cpu_times().system for p in (me, *me.children(recursive=True))))


def once(model: Any, plan: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - vLLM's own is untyped here
    """All rows at once."""
    rows, clock, wall = plan["rows"], cpu_s(), time.perf_counter()
    worn = [
        None if row["adapter"] is None else LoRARequest(f"a{n}", n + 1, plan["adapters"][row["adapter"]])
        for n, row in enumerate(rows)
    ]
    out = model.generate(
        [{"prompt_token_ids": row["ids"]} for row in rows],
        [SamplingParams(temperature=0, max_tokens=row["new"], ignore_eos=True) for row in rows],
        lora_request=worn,
        use_tqdm=False,
    )
    ids = [list(one.outputs[0].token_ids) for one in out]
    found = {"cpu_s": cpu_s() - clock, "wall_s": time.perf_counter() - wall, "tokens": sum(map(len, ids)), "ids": ids}
    # It does not say when prompts end, so its decoding is its whole.
    return found | {"decode_s": found["cpu_s"], "decode_tokens": found["tokens"]}


def main(plan_file: str) -> None:
    """Ready, then one round a line."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # its processes write their log where answers are awaited
    plan = json.loads(Path(plan_file).read_text())
    kinds = {"fp32": "float32", "bf16": "bfloat16"}
    model = LLM(
        plan["folder"],
        dtype=kinds[plan["precision"]],
        enable_lora=True,
        max_loras=16,
        max_lora_rank=16,
        max_model_len=plan["context"],
        max_num_seqs=plan["width"],
    )
    once(model, plan)
    print(json.dumps("ready"), file=said, flush=True)
    for _ in sys.stdin:
        print(json.dumps(once(model, plan)), file=said, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
