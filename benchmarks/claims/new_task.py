"""What several parts share: each method with 8 virtual tokens, learning four tasks that the base never did."""

from functools import cache
from pathlib import Path

from benchmarks.claims.learn import Learned, Recipe, learned
from benchmarks.claims.toy import Task, Toy, opened
from core.specs.method import MethodSpec, PromptTuningSpec

LENGTH = 8
TASKS = range(4)
RECIPE = Recipe(rate=1e-2, steps=200)


def on_new_tasks(toy: Toy, spec: MethodSpec, recipe: Recipe = RECIPE) -> list[Learned]:
    """What spec learns of each of them."""
    return [learned(toy, spec, Task.new(task), recipe, seed=task) for task in TASKS]


@cache
def bare_prompts(folder: Path) -> list[Learned]:
    """Prompt tuning, which prefixes and encoders are held against: learned once. folder: of the toy model."""
    return on_new_tasks(opened(folder), PromptTuningSpec(num_virtual_tokens=LENGTH))
