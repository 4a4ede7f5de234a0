"""Ensembles: five prompts of one task answer together no worse than one by itself. Lester et al. 2021, section 6."""

from pathlib import Path

import torch

from benchmarks.claims.finding import Figure, Finding, at_least, mean
from benchmarks.claims.learn import JUDGED, JUDGED_SEED, Recipe, corpus_of, learned
from benchmarks.claims.toy import Task, Toy, opened
from core.effects import Effect, members_of
from core.model import Rows
from core.routing import Routing
from core.specs.method import PromptTuningSpec

CLAIM = "the vote of five prompts is right at least as often as one of them on average"
TASKS = range(4)
MEMBERS = 5
RECIPE = Recipe(rate=1e-2, steps=200, rows=32, distinct=32)


def measure(cache: Path) -> Finding:
    """Four new tasks of 32 examples."""
    toy = opened(cache)
    single, voted = zip(*(_asked(toy, Task.new(task)) for task in TASKS), strict=True)
    return Finding(
        CLAIM,
        (
            Figure("accuracy", "one of five, mean", mean(single), 0.629),
            Figure("accuracy", "vote of five", mean(voted), 0.655),
        ),
        (at_least("mean(vote) >= mean(single)", mean(voted), mean(single)),),
    )


def _asked(toy: Toy, task: Task) -> tuple[float, float]:
    """Mean accuracy of the members, and of their vote."""
    spec = PromptTuningSpec(num_virtual_tokens=8, ensemble_size=MEMBERS)
    method = learned(toy, spec, task, RECIPE, seed=task.map).method
    rows = list(corpus_of(spec, task, JUDGED, JUDGED_SEED + task.map))
    questions = [row.ids[:-1].tolist() for row in rows]
    wanted = torch.tensor([int(row.ids[-1]) for row in rows])
    with torch.no_grad():
        scores = torch.stack([_answers(toy, member, questions) for member in members_of(method.effect())])  # [M, n, V]
    singles = (scores.argmax(-1) == wanted).float().mean(1)
    return float(singles.mean()), float((_vote(scores) == wanted).float().mean())


def _answers(toy: Toy, effect: Effect, questions: list[list[int]]) -> torch.Tensor:
    """Log-probabilities [n, V] of the next word of each question."""
    with toy.model.wearing(Routing.of_rows([effect] * len(questions))):
        rows = Rows.of(questions)
        last = toy.model(rows)[torch.tensor(rows.starts[1:]) - 1]
        return toy.model.logits(last).log_softmax(-1)


def _vote(scores: torch.Tensor) -> torch.Tensor:
    """The word that most members answer, of [M, n, V]; where words tie, the one of higher mean log-probability: [n]."""
    votes = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).sum(0)  # [n, V]
    best = votes == votes.amax(-1, keepdim=True)
    return scores.mean(0).masked_fill(~best, float("-inf")).argmax(-1)
