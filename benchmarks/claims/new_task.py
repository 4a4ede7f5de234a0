"""What several parts share: each method with 8 virtual tokens, learning four tasks that the base never did."""

from benchmarks.claims.learn import Learned, Recipe, learned
from benchmarks.claims.toy import Task, Toy
from core.specs.method import MethodSpec

TASKS = range(4)
RECIPE = Recipe(rate=1e-2, steps=200)


def on_new_tasks(toy: Toy, spec: MethodSpec, recipe: Recipe = RECIPE) -> list[Learned]:
    """What spec learns of each of them."""
    return [learned(toy, spec, Task.new(task), recipe, seed=task) for task in TASKS]
