"""Prompt tuning: class labels start best, then sampled words, then random numbers. Lester et al. 2021, section 3.2."""

from pathlib import Path

from benchmarks.claims.finding import Figure, Finding, ascending, at_least, mean
from benchmarks.claims.learn import Learned, Recipe, learned
from benchmarks.claims.toy import Task, Toy, opened
from core.specs.method import PromptTuningSpec

CLAIM = "prompt tuning starts better from class labels than from words, from words than at random"
TASKS = range(6)
RECIPE = Recipe(rate=1e-3, steps=60)  # at a large rate the start is forgotten: it must be small here
EXPECTED = {  # accuracy, first loss, last loss
    "class labels": (0.999, 1.23, 0.010),
    "sampled words": (0.962, 5.86, 0.105),
    "uniform": (0.842, 5.28, 0.935),
}


def measure(cache: Path) -> Finding:
    """Six seen tasks, three starts."""
    toy = opened(cache)
    found = {name: [_learned(toy, name, Task.seen(t)) for t in TASKS] for name in EXPECTED}
    return _finding(found)


def _learned(toy: Toy, start: str, task: Task) -> Learned:
    specs = {
        "class labels": PromptTuningSpec(
            num_virtual_tokens=8,
            prompt_tuning_init="class_label",
            class_labels=tuple(str(word) for word in task.label_words),
        ),
        "sampled words": PromptTuningSpec(num_virtual_tokens=8, prompt_tuning_init="vocab"),
        "uniform": PromptTuningSpec(num_virtual_tokens=8, prompt_tuning_init="random"),
    }
    return learned(toy, specs[start], task, RECIPE, seed=task.map)


def _finding(found: dict[str, list[Learned]]) -> Finding:
    figures, last = [], {}
    for name, some in found.items():
        accuracy, first, final = EXPECTED[name]
        last[name] = mean([one.last_loss for one in some])
        figures += [
            Figure("accuracy", name, mean([one.accuracy for one in some]), accuracy),
            Figure("first loss, nats", name, mean([one.first_loss for one in some]), first),
            Figure("last loss, nats", name, last[name], final),
        ]
    labels = mean([one.accuracy for one in found["class labels"]])
    return Finding(
        CLAIM,
        tuple(figures),
        (
            ascending("last loss: class labels < sampled words < uniform", list(last.values())),
            at_least("class labels: accuracy >= .98", labels, 0.98),
        ),
    )
