"""One arm of benchmarks/training.py in a process of its own: our trainer on one base, timed, its memory read.

`python -m benchmarks.training_ours PLAN.json FOUND.json`. Times are of this process's own CPU, so that a busy machine
moves them little; memory is the peak less what stood after the imports.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, silu

import core.attention
import core.frugal
import core.learning
import core.linear
from benchmarks.training_start import head_inputs, peak_kib, started
from core.base.catalogue import entry
from core.base.load import OpenBase, open_base
from core.base.nf4 import dense_weight
from core.data.batches import Corpus, order
from core.data.tokens import TokenRow
from core.effects import Ensemble
from core.frugal import FrugalBlock
from core.linear import Head
from core.losses import CHUNK, TokenLosses, next_token_loss
from core.methods import METHODS, Method
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.method import LoraSpec, MethodSpec
from core.specs.training import TrainSpec
from core.trainer import Failed, Run, Step, train
from worker.allocator import settle_for_training

IMPORTED_KIB = peak_kib()
SPECS: TypeAdapter[MethodSpec] = TypeAdapter(MethodSpec)


def main(plan_file: str, found_file: str) -> None:
    """Does what the plan says, writes what was found."""
    plan = json.loads(Path(plan_file).read_text())
    settle_for_training()  # as a trainer does
    torch.set_num_threads(plan["threads"])
    found = ARMS[plan["arm"]](plan)
    peak = peak_kib() - IMPORTED_KIB
    Path(found_file).write_text(json.dumps(found | {"peak_mb": peak / 1024}))


def steps(plan: dict[str, Any]) -> dict[str, Any]:
    """So many optimiser steps; the first of them warm up and are not counted."""
    spec = SPECS.validate_python(plan["method"])
    base = opened(plan, spec)
    method = METHODS[spec.type](spec, base.facts, generator=torch.Generator().manual_seed(0))
    if isinstance(spec, LoraSpec):
        start_alike(method)
    model = RoutedModel(base.model)
    rows = json.loads(Path(plan["rows"]).read_text())
    batch = plan["batch"]
    corpus = in_given_order(rows[: batch * plan["steps"]], spec)
    run = Run(train_spec(spec, plan), method, corpus)
    cpu, wall, losses = [], [], []
    with without(plan.get("without", [])):
        clock = time.process_time()
        for event in train(model, [run]):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Step):
                cpu.append(time.process_time() - clock)
                wall.append(event.seconds)
                losses.append(event.loss)
            clock = time.process_time()
    counted = rows[batch * plan["warm_up"] : batch * plan["steps"]]
    found = timed(plan, sum(len(row["ids"]) for row in counted), cpu, wall, losses)
    if plan.get("floor"):
        learned = sum(sum(row["learned"]) for row in counted)
        tokens_a_step = found["tokens"] // (len(cpu) - plan["warm_up"])
        found["floor_us_per_token"] = floor_us(model, tokens_a_step, learned / found["tokens"])
    return found


def to_loss(plan: dict[str, Any]) -> dict[str, Any]:
    """Steps until the validation loss is as low as the goal, or all that were planned; the loss by step and CPU s."""
    spec = SPECS.validate_python(plan["method"])
    base = opened(plan, spec)
    method = METHODS[spec.type](spec, base.facts, generator=torch.Generator().manual_seed(0))
    start_alike(method)
    model = RoutedModel(base.model)
    rows = json.loads(Path(plan["rows"]).read_text())
    run = Run(train_spec(spec, plan), method, in_given_order(rows[: plan["batch"] * plan["steps"]], spec))
    curve: list[dict[str, Any]] = []
    clock, spent = time.process_time(), 0.0
    for event in train(model, [run]):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Step):
            spent += time.process_time() - clock
            if event.number % plan["every"] == 0:
                loss = validated(model, method, rows[-plan["held_out"] :])
                curve.append({"step": event.number, "cpu_s": spent, "loss": loss})
                if loss <= plan["goal"]:
                    break
            clock = time.process_time()
    return {"curve": curve, "cpu_us_per_token": 0.0}


def validated(model: RoutedModel, method: Method, rows: list[dict[str, Any]]) -> float:
    """The mean loss of all learned tokens of these rows, one row after another."""
    total, count, effect = 0.0, 0, method.effect()
    assert not isinstance(effect, Ensemble)
    with torch.inference_mode():
        for row in rows:
            ids, learned = torch.tensor(row["ids"]), torch.tensor(row["learned"])
            with model.wearing(Routing.of_rows([effect])):
                hidden = model(Rows.of([row["ids"]]))
            said = model.logits(hidden[:-1]).float()
            total += float(cross_entropy(said[learned[1:]], ids[1:][learned[1:]], reduction="sum"))
            count += int(learned[1:].sum())
    return total / count


def timed(
    plan: dict[str, Any], tokens: int, cpu: list[float], wall: list[float], losses: list[float]
) -> dict[str, Any]:
    """The figures of an arm's steps. tokens: real ones of the steps that count."""
    warm = plan["warm_up"]
    return {
        "tokens": tokens,
        "cpu_us_per_token": sum(cpu[warm:]) / tokens * 1e6,
        "tokens_per_s": tokens / sum(wall[warm:]),
        "losses": losses,
    }


def opened(plan: dict[str, Any], spec: MethodSpec) -> OpenBase:
    """The base as a job would have it."""
    base = entry(EMBEDDED_BASE_MODELS, plan["base_model"])
    return open_base(
        base,
        cache_dir=Path(plan["cache"]),
        device="cpu",
        precision=plan["precision"],
        base_precision=spec.base_precision,
    )


def start_alike(method: Method) -> None:
    """Both sides start from the same A: drawn by the layer's name."""
    with torch.no_grad():
        for a, site in zip(method.a, method.sites, strict=True):  # type: ignore[attr-defined]
            a.copy_(started(site.name, tuple(a.shape)))


def in_given_order(rows: list[dict[str, Any]], spec: MethodSpec) -> Corpus:
    """A corpus that its first epoch reads in the order of rows, each behind the method's virtual tokens."""
    template = spec.row_template
    virtual = 0 if template is None else template.num_virtual_tokens
    front, unlearned = list(range(-1, -1 - virtual, -1)), [False] * virtual
    made = [
        TokenRow(n, np.array(front + row["ids"], np.int32), np.array(unlearned + row["learned"], np.bool_))
        for n, row in enumerate(rows)
    ]
    places = order(len(made), 0, 0)
    return Corpus.of(made[int(n)] for n in np.argsort(places))


def train_spec(spec: MethodSpec, plan: dict[str, Any]) -> TrainSpec:
    """The plan as a job would have it."""
    return TrainSpec(
        base_model=plan["base_model"],
        method=spec,
        n_epochs=1,
        batch_size=plan["batch"],
        learning_rate=plan["rate"],
        lr_scheduler="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_seq_length=2048,
        tokens_per_batch=2048,
        train_on="assistant",
        eval_steps=None,
        n_checkpoints=1,
        seed=0,
    )


def floor_us(model: RoutedModel, tokens: int, learned: float) -> float:
    """CPU µs a token of the frozen products alone: forward and into x, of every layer; the head's, of learned ones."""
    total = 0.0
    for site in model.sites.values():
        total += products_s(dense_weight(site.base).to(model.dtype), tokens)
    total += products_s(model.head.weight, CHUNK, times=3) * tokens * learned / CHUNK
    return total / tokens * 1e6


def products_s(weight: Tensor, tokens: int, *, times: int = 2) -> float:
    """CPU seconds of x Wᵀ and dy W at their best."""
    x, dy = (torch.randn(tokens, width, dtype=weight.dtype) for width in (weight.shape[1], weight.shape[0]))
    return best_s(lambda: linear(x, weight), times) + best_s(lambda: dy @ weight, times)


def best_s(act: Callable[[], object], times: int) -> float:
    """CPU seconds of the quickest of so many."""
    found = []
    for _ in range(times):
        clock = time.process_time()
        act()
        found.append(time.process_time() - clock)
    return min(found)


def head(plan: dict[str, Any]) -> dict[str, Any]:
    """The loss head alone, forward and backward, and its gradient beside that of plain full logits in fp32."""
    dtype = torch.float32 if plan["precision"] == "fp32" else torch.bfloat16
    hidden, weight, ids, learned = head_inputs(plan["tokens"], dtype)
    model: Any = SimpleNamespace(head=Head(weight, None, None))

    def ours() -> Tensor:
        x = hidden.clone().requires_grad_()
        loss = next_token_loss(model, x, ids, learned, (0, len(ids)))
        (loss.total / loss.count).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad

    x = hidden.float().clone().requires_grad_()
    wanted = learned.nonzero()[:, 0]
    cross_entropy(linear(x[wanted - 1], weight.float()), ids[wanted]).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    difference = float((ours().float() - x.grad).norm() / x.grad.norm())
    return {"cpu_us_per_token": best_s(ours, 3) / len(ids) * 1e6, "gradient_difference": difference}


@contextmanager
def without(names: list[str]) -> Iterator[None]:
    """Inside this, the tricks of these names are put back to the plain form that they stand for."""
    with ExitStack() as stack:
        for name in names:
            target, attribute, plain = PLAIN[name]
            stack.enter_context(patch.object(target, attribute, plain))
        yield


def plain_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As transformers has it, every step autograd's own."""
    fine = x.float()
    return weight * (fine * torch.rsqrt(fine.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def plain_block(block: FrugalBlock, x: Tensor) -> Tensor:
    """As transformers has it, every step autograd's own."""
    y: Tensor = block.down_proj(silu(block.gate_proj(x)) * block.up_proj(x))
    return y


def full_logits(model: RoutedModel, hidden: Tensor, ids: Tensor, learned: Tensor, starts: Sequence[int]) -> TokenLosses:
    """Logits of every token at once, the loss of learned ones."""
    ends = torch.zeros_like(learned)
    ends[torch.tensor(starts[1:]) - 1] = True
    targets = torch.where(learned, ids, -100).roll(-1).masked_fill(ends, -100)
    logits = model.logits(hidden).float()
    counts = targets != -100  # noqa: PLR2004 - what torch leaves out
    nats = cross_entropy(logits, targets, reduction="none")[counts]
    rows = torch.searchsorted(torch.tensor(starts), counts.nonzero()[:, 0], right=True) - 1
    return TokenLosses(nats, logits.argmax(1)[counts] == targets[counts], rows)


ARMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"steps": steps, "head": head, "to_loss": to_loss}

PLAIN: dict[str, tuple[Any, str, Any]] = {
    "one node a layer": (core.linear, "_dense", lambda _base: None),
    "frugal norms": (core.frugal, "rms_norm", plain_norm),
    "frugal blocks": (FrugalBlock, "forward", plain_block),
    "explicit attention": (core.attention, "SHORT", 0),
    "head of learned tokens": (core.learning, "token_losses", full_logits),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
