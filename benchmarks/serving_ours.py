"""One arm of benchmarks/serving.py in a process of its own: our engine, asked as an engine process would ask it.

`python -m benchmarks.serving_ours PLAN.json` says that it is ready, and then does one round for every line it reads.
Times are of this process's own CPU, so that a busy machine moves them little.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from core.base.catalogue import entry
from core.base.load import OpenBase, open_base
from core.base.nf4 import dense_weight
from core.effects import Effect, LowRank, SoftPrompt
from core.model import RoutedModel, Rows
from core.ops.pool import RankPool
from core.packed_model import pack_model
from core.peft_files import read
from core.routing import Routing, tensors_of
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.generation import AdapterRef, Frame, GenerateSpec, QueueSpec, SamplingSpec
from worker.engine.engine import Engine
from worker.engine.intake import Intake

Found = dict[str, Any]
Plan = dict[str, Any]


class Arm:
    """An engine, its adapters by number, and the rows it is asked for."""

    def __init__(self, plan: Plan, load: Callable[[str], Effect] | None = None) -> None:
        """load: digest to serving form, where it is not the plan's folders that are served."""
        self.plan, self.base = plan, opened(plan)
        self.model = RoutedModel(self.base.model)
        if "packing" not in plan.get("without", []):
            pack_model(self.model, with_siblings="siblings" not in plan.get("without", []))
        self.folders = {digest_of(n): Path(folder) for n, folder in enumerate(plan["adapters"])}
        self.engine = Engine(
            self.model,
            load or self.load,
            rows=plan["width"],
            context=plan["context"],
            adapter_memory_bytes=plan.get("adapter_bytes", 4 << 30),
            max_waiting=len(plan["rows"]),
        )
        self.intake = Intake(
            self.base.tokenizer,
            base_model=plan["base_model"],
            context=plan["context"],
            vocabulary=self.base.facts.vocabulary,
            stop_ids=frozenset(),
        )

    @property
    def loads(self) -> int:
        """How many adapters were loaded so far."""
        return int(str(self.engine.status()["adapter_loads"]))

    def load(self, digest: str) -> Effect:
        """The serving form."""
        return self.model.resident(read(self.folders[digest]))

    def round(self, groups: Sequence[Sequence[int]] | None = None) -> Found:
        """Every group of rows to its end, one group after another: the plan's, if none are named."""
        clock, wall = time.process_time(), time.perf_counter()
        done: Found = {"tokens": 0, "steps": 0, "decode_s": 0.0, "decode_tokens": 0}
        ids: dict[int, list[int]] = {}
        for group in self.plan["groups"] if groups is None else groups:
            ids |= self.group(group, done)
        done |= {"cpu_s": time.process_time() - clock, "wall_s": time.perf_counter() - wall}
        return done | {"ids": [ids[row] for row in sorted(ids)]}

    def group(self, group: Sequence[int], done: Found) -> dict[int, list[int]]:
        """These rows at once. Steps in which every row decodes are counted apart."""
        frames: dict[int, list[Frame]] = {number: [] for number in group}
        for number in group:
            self.engine.submit(self.intake.sequence(self.spec(number), frames[number].append))
        while not self.engine.is_idle:
            prompts, tokens, clock = self.engine.prompt_tokens, self.engine.tokens, time.process_time()
            if not self.engine.step():
                time.sleep(0.001)  # an adapter is on its way
                continue
            made = self.engine.tokens - tokens
            done["steps"] += 1
            done["tokens"] += made
            if self.engine.prompt_tokens == prompts:
                done["decode_s"] += time.process_time() - clock
                done["decode_tokens"] += made
        failed = [said[-1].error for said in frames.values() if said[-1].error is not None]
        if failed:
            raise RuntimeError(f"{len(failed)} rows failed, the first with {failed[0]}")
        return {number: [i for frame in said for i in frame.ids] for number, said in frames.items()}

    def spec(self, number: int) -> GenerateSpec:
        """One row as a client would ask for it."""
        row = self.plan["rows"][number]
        digest = None if row["adapter"] is None else digest_of(row["adapter"])
        return GenerateSpec(
            request_id=f"r-{number}",
            base_model=self.plan["base_model"],
            adapter=None if digest is None else AdapterRef(id=f"a-{row['adapter']}", sha256=digest),
            prompt_ids=tuple(row["ids"]),
            sampling=SamplingSpec(temperature=0, max_tokens=row["new"]),
            queue=QueueSpec(tenant="t"),
        )

    def floor_s(self) -> float:
        """CPU seconds of one step's frozen products alone, of as many rows as the engine has: the quickest of five."""
        weights = [dense_weight(site.base).to(self.model.dtype) for site in self.model.sites.values()]
        weights.append(self.model.head.weight)
        inputs = {w: torch.randn(self.plan["width"], w, dtype=self.model.dtype) for w in {w.shape[1] for w in weights}}
        found = []
        with torch.inference_mode():
            for _ in range(5):
                clock = time.process_time()
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)
                found.append(time.process_time() - clock)
        return min(found)

    def parameters(self) -> dict[str, int]:
        """How many numbers a step reads: of the base, and of all adapters that the rows wear."""
        own = sum(dense_weight(site.base).numel() for site in self.model.sites.values())
        worn = {row["adapter"] for row in self.plan["rows"]} - {None}
        effects = [read(self.folders[digest_of(n)]) for n in worn]
        thin = sum(t.numel() for e in effects if isinstance(e, LowRank) for t in tensors_of(e))
        return {"base": own + self.model.head.weight.numel(), "adapters": thin}


def batch(plan: Plan) -> Callable[[], Found]:
    """Rounds of the same rows; the first, which loads all adapters, is not counted."""
    if "pages" in plan.get("without", []):
        RankPool.pages_pay = False  # type: ignore[method-assign, assignment]
    arm = Arm(plan)
    arm.round()

    def once() -> Found:
        found = arm.round() | {"parameters": arm.parameters()}
        return found | ({"floor_s": arm.floor_s()} if plan.get("floor") else {})

    return once


def logits(plan: Plan) -> Callable[[], Found]:
    """Logits after each row's prompt, all rows in one forward."""
    arm = Arm(plan)
    rows = plan["rows"]

    def once() -> Found:
        worn = [None if row["adapter"] is None else arm.load(digest_of(row["adapter"])) for row in rows]
        routing = Routing.of_rows(worn)
        asked = [
            w.layout.around(row["ids"]) if isinstance(w, SoftPrompt) else row["ids"]
            for w, row in zip(worn, rows, strict=True)
        ]
        with torch.inference_mode(), arm.model.wearing(routing):
            batch = Rows.of(asked, first_positions=routing.first_positions())
            hidden = arm.model(batch)[torch.tensor(batch.starts[1:]) - 1]
            return {"logits": arm.model.logits(hidden).float().tolist()}

    return once


def opened(plan: Plan) -> OpenBase:
    """The base, as an engine opens it."""
    base = entry(EMBEDDED_BASE_MODELS, plan["base_model"])
    return open_base(base, cache_dir=Path(plan["cache"]), device="cpu", precision=plan["precision"])


def digest_of(number: int) -> str:
    """What the engine knows an adapter by."""
    return f"{number + 1:064x}"


ARMS: dict[str, Callable[[Plan], Callable[[], Found]]] = {"batch": batch, "logits": logits}


def serve(arms: Mapping[str, Callable[[Plan], Callable[[], Found]]], plan_file: str) -> None:
    """Ready, then one round of the plan's arm a line."""
    said, sys.stdout = sys.stdout, sys.stderr
    plan = json.loads(Path(plan_file).read_text())
    torch.set_num_threads(plan["threads"])
    once = arms[plan["arm"]](plan)
    print(json.dumps("ready"), file=said, flush=True)
    for _ in sys.stdin:
        print(json.dumps(once()), file=said, flush=True)


if __name__ == "__main__":
    serve(ARMS, *sys.argv[1:])
