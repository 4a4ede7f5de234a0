"""QLoRA: LoRA on a base in 4 bits learns what it learns on the base itself. Dettmers et al. 2023, section 4."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from benchmarks.claims import quantisers, toy
from benchmarks.claims.finding import Figure, Finding, at_least, mean
from benchmarks.claims.learn import Recipe, judged, trained
from core.base.nf4 import quantise_linears
from core.methods import METHODS
from core.ops.nf4 import BLOCK
from core.specs.method import LoraSpec

CLAIM = "LoRA on an NF4 base learns at least 95 % of what it learns on the base itself"
TASKS = range(3)
RECIPE = Recipe(rate=1e-2, steps=150)
SPEC = LoraSpec(r=4, lora_alpha=8)
EXPECTED = {"fp32": (5.66, 0.0059), "NF4": (5.60, 0.0056), "FP4": (5.65, 0.0055)}  # loss before, loss after


def measure(cache: Path) -> Finding:
    """Three new tasks on three bases."""
    bases: dict[str, Callable[[LlamaForCausalLM], None]] = {"fp32": lambda _: None, "NF4": _in_nf4, "FP4": _in_fp4}
    found = {}
    for name, change in bases.items():
        base = toy.pretrained(cache)
        change(base)
        found[name] = _losses(toy.worn(base))
    drop = {name: before - after for name, (before, after) in found.items()}
    figures = [
        figure
        for name, (before, after) in found.items()
        for figure in (
            Figure("loss before, nats", name, before, EXPECTED[name][0]),
            Figure("loss after, nats", name, after, EXPECTED[name][1]),
        )
    ]
    return Finding(CLAIM, tuple(figures), (at_least("NF4: >= .95 of fp32's drop", drop["NF4"], 0.95 * drop["fp32"]),))


def _losses(opened: toy.Toy) -> tuple[float, float]:
    """Mean loss on unseen rows, before and after."""
    before, after = [], []
    for number in TASKS:
        task = toy.Task.new(number)
        method = METHODS[SPEC.type](SPEC, opened.facts, generator=torch.Generator().manual_seed(number))
        before.append(judged(opened, SPEC, method, task).loss)
        after.append(trained(opened, SPEC, method, task, RECIPE, seed=number).score.loss)
    return mean(before), mean(after)


def _in_nf4(base: LlamaForCausalLM) -> None:
    head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    quantise_linears(base, head=head, device=base.device, dtype=torch.float32)


def _in_fp4(base: LlamaForCausalLM) -> None:
    """The values that bitsandbytes' fp4 would stand for; what they are kept in does not matter here."""
    levels, _ = quantisers.FORMATS["FP4, bitsandbytes"]
    head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in base.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.weight.data = quantisers.rounded(module.weight.data, levels, BLOCK)
