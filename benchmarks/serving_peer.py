"""One arm of benchmarks/serving.py by Hugging Face `generate` and stock PEFT. Knows nothing of Graft.

`python -m benchmarks.serving_peer PLAN.json` says that it is ready, and then does one round for every line it reads.
The rows of a group go through one `generate`: rows of LoRA adapters and of the base by `adapter_names`, and those of
any other method with rows of their own adapter alone, for PEFT has no other legal way.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.stock_peft import row_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Found = dict[str, Any]
Plan = dict[str, Any]


class Clock(StoppingCriteria):
    """Stops nothing: notes when each token of a batch was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # noqa: ARG002
        """Called by `generate` after every token."""
        self.times.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Peer:
    """One base for each way that an adapter changes it: LoRA and AdaLoRA put layers of their own into theirs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kinds = [json.loads((Path(a) / "adapter_config.json").read_text())["peft_type"] for a in plan["adapters"]]
        self.plain = self._base()
        self.shared: dict[str, Any] = {}
        self.alone: dict[int, Any] = {}
        for number in sorted({row["adapter"] for row in plan["rows"]} - {None}):
            self._load(number)

    def _base(self) -> Any:  # noqa: ANN401 - transformers' own is untyped
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.plan["folder"], dtype=DTYPES[self.plan["precision"]], local_files_only=True
        )
        model.generation_config.eos_token_id = None
        model.train(mode=False)
        return model

    def _load(self, number: int) -> None:
        folder, kind, name = self.plan["adapters"][number], self.kinds[number], f"a{number}"
        if kind not in {"LORA", "ADALORA"}:
            self.alone[number] = PeftModel.from_pretrained(self.plain, folder, adapter_name=name)
        elif kind in self.shared:
            self.shared[kind].load_adapter(folder, adapter_name=name)
        else:
            self.shared[kind] = PeftModel.from_pretrained(self._base(), folder, adapter_name=name)

    def round(self) -> Found:
        """Every group of rows to its end."""
        done: Found = {"tokens": 0, "decode_s": 0.0, "decode_tokens": 0}
        clock, wall = time.process_time(), time.perf_counter()
        ids: dict[int, list[int]] = {}
        for group in self.plan["groups"]:
            ids |= self.group(group, done)
        done |= {"cpu_s": time.process_time() - clock, "wall_s": time.perf_counter() - wall}
        return done | {"ids": [ids[row] for row in sorted(ids)]}

    def group(self, group: Sequence[int], done: Found) -> dict[int, list[int]]:
        """These rows in one `generate`, padded on the left, all as long as the longest: useful tokens alone count."""
        rows = [self.plan["rows"][number] for number in group]
        width, new = max(len(row["ids"]) for row in rows), max(row["new"] for row in rows)
        ids = torch.tensor([[0] * (width - len(row["ids"])) + row["ids"] for row in rows])
        mask = torch.tensor([[0] * (width - len(row["ids"])) + [1] * len(row["ids"]) for row in rows])
        model, told = self._wearing([row["adapter"] for row in rows])
        clock = Clock()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
                **told,
            )
        said = out[:, -new:].tolist()
        made = {number: own[: row["new"]] for number, row, own in zip(group, rows, said, strict=True)}
        done["tokens"] += sum(map(len, made.values()))
        done["decode_s"] += clock.times[-1] - clock.times[0]
        done["decode_tokens"] += sum(map(len, made.values())) - len(made)
        return made

    def _wearing(self, worn: Sequence[int | None]) -> tuple[Any, dict[str, Any]]:
        """The model that these rows go through, and what `generate` is told beside."""
        kinds = {self.kinds[number] for number in worn if number is not None}
        if not kinds:
            return self.plain, {}
        if kinds == {"LORA"}:
            return self.shared["LORA"], {"adapter_names": ["__base__" if n is None else f"a{n}" for n in worn]}
        (only,) = set(worn)
        assert only is not None
        if kinds == {"ADALORA"}:
            self.shared["ADALORA"].set_adapter(f"a{only}")
            return self.shared["ADALORA"], {}
        return self.alone[only], {}


def batch(plan: Plan) -> Callable[[], Found]:
    """Rounds of the same rows; the first is not counted."""
    peer = Peer(plan)
    peer.round()
    return peer.round


def alone(plan: Plan) -> Callable[[], Found]:
    """Every row by itself, unpadded, each step from the start: what all else is held against."""

    def once() -> Found:
        said = []
        for row in plan["rows"]:
            adapter = None if row["adapter"] is None else plan["adapters"][row["adapter"]]
            asked = {"ids": row["ids"], "adapter": adapter, "max_tokens": row["new"], "stop_ids": [], "reserved": []}
            said.append(row_of(plan["folder"], asked))
        return {"ids": [row["ids"] for row in said], "logits": [row["logits"] for row in said]}

    return once


ARMS: dict[str, Callable[[Plan], Callable[[], Found]]] = {"batch": batch, "alone": alone}


def main(plan_file: str) -> None:
    """Ready, then one round a line."""
    said, sys.stdout = sys.stdout, sys.stderr
    plan = json.loads(Path(plan_file).read_text())
    torch.set_num_threads(plan["threads"])
    once = ARMS[plan["arm"]](plan)
    print(json.dumps("ready"), file=said, flush=True)
    for _ in sys.stdin:
        print(json.dumps(once()), file=said, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
