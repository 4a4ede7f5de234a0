"""Prefix tuning with 16 examples: it starts best from words of the task. Li and Liang 2021, section 7.4."""

from collections.abc import Callable
from pathlib import Path
from statistics import pstdev

import torch

from benchmarks.claims.finding import Figure, Finding, ascending, at_least, at_most, mean
from benchmarks.claims.learn import Learned, Recipe, learned
from benchmarks.claims.toy import FIRST_INSTRUCTION, TASKS, Task, Toy, opened
from core.methods import Method
from core.specs.method import PrefixTuningSpec

CLAIM = "with 16 examples a prefix learns best from words of its task, then from other words, then at random"
RECIPE = Recipe(rate=1e-2, steps=40, rows=16, distinct=16)
EXPECTED = {  # accuracy, its spread over tasks
    "uniform (0, 1)": (0.857, 0.135),
    "normal (0, 1)": (0.762, 0.146),
    "other words": (0.873, 0.109),
    "words of the task": (0.992, 0.020),
}


def measure(cache: Path) -> Finding:
    """Eight seen tasks, four starts, prefixes of 3."""
    toy = opened(cache)
    found = {name: [_learned(toy, name, Task.seen(t)) for t in range(TASKS)] for name in EXPECTED}
    accuracy = {name: mean([one.accuracy for one in some]) for name, some in found.items()}
    spread = {name: pstdev([one.accuracy for one in some]) for name, some in found.items()}
    uniform, normal, other, own = accuracy.values()
    return Finding(
        CLAIM,
        tuple(
            figure
            for name, (share, deviation) in EXPECTED.items()
            for figure in (
                Figure("accuracy", name, accuracy[name], share),
                Figure("deviation of the accuracy", name, spread[name], deviation),
            )
        ),
        (
            ascending("words of the task > other words", [other, own]),
            at_least("other words >= either random start", other, max(uniform, normal)),
            at_most(
                "words of the task: the smallest spread",
                spread["words of the task"],
                min(spread[name] for name in EXPECTED if name != "words of the task"),
            ),
        ),
    )


def _learned(toy: Toy, start: str, task: Task) -> Learned:
    draws: dict[str, Callable[[torch.Tensor, torch.Generator], object]] = {
        "uniform (0, 1)": lambda t, g: t.uniform_(0, 1, generator=g),
        "normal (0, 1)": lambda t, g: t.normal_(0, 1, generator=g),
    }
    if start in draws:
        spec = PrefixTuningSpec(num_virtual_tokens=3, parametrization="kv")
        return learned(toy, spec, task, RECIPE, seed=task.map, start=lambda m: _drawn(m, draws[start], task.map))
    words = task.instruction if start == "words of the task" else _others(task)
    text = " ".join(str(word) for word in words)
    spec = PrefixTuningSpec(num_virtual_tokens=3, parametrization="kv", prefix_init="text", prefix_init_text=text)
    return learned(toy, spec, task, RECIPE, seed=task.map)


def _drawn(method: Method, draw: Callable[[torch.Tensor, torch.Generator], object], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            draw(parameter, generator)


def _others(task: Task) -> list[int]:
    """Three words of instruction, each of another task."""
    return [FIRST_INSTRUCTION + 3 * ((task.map + step) % TASKS) for step in (1, 2, 3)]
