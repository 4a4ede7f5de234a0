"""Methods learning tasks on the toy model: through the trainer that jobs go through, and judged as it judges."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.claims.toy import Task, Toy, corpus
from core.data.batches import Corpus
from core.methods import METHODS, Method
from core.specs.method import MethodSpec
from core.specs.training import TrainSpec
from core.trainer import Failed, Run, Score, Step, evaluate, train

JUDGED = 500  # rows
TRAINING_SEED, JUDGED_SEED = 1000, 2000  # of the rows of task 0; those of other tasks count on from there


@dataclass(frozen=True)
class Recipe:
    """How a method is trained here: Adam, one rate throughout."""

    rate: float
    steps: int
    rows: int = 32  # of a step
    distinct: int | None = None  # rows there are to learn from; None is new ones at every step


@dataclass(frozen=True, eq=False)
class Learned:
    """One method on one task, done."""

    method: Method
    first_loss: float  # of the first step, before anything was learned
    last_loss: float  # of the last ten steps
    score: Score  # on rows it has not seen

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.score.accuracy


def learned(
    toy: Toy,
    spec: MethodSpec,
    task: Task,
    recipe: Recipe,
    *,
    seed: int = 0,
    start: Callable[[Method], None] | None = None,
) -> Learned:
    """What spec learns of task. start: what to do to the untrained method."""
    method = METHODS[spec.type](spec, toy.facts, generator=torch.Generator().manual_seed(seed))
    if start is not None:
        start(method)
    return trained(toy, spec, method, task, recipe, seed=seed)


def trained(toy: Toy, spec: MethodSpec, method: Method, task: Task, recipe: Recipe, *, seed: int = 0) -> Learned:
    """A method that stands ready, trained on task."""
    count = recipe.distinct or recipe.steps * recipe.rows
    rows = corpus_of(spec, task, count, TRAINING_SEED + 10 * seed + task.map)
    epochs = 1 if recipe.distinct is None else recipe.steps * recipe.rows // recipe.distinct
    run = Run(train_spec(spec, recipe, epochs, seed), method, rows)
    losses = []
    for event in train(toy.model, [run]):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Step):
            losses.append(event.loss)
    return Learned(method, losses[0], sum(losses[-10:]) / len(losses[-10:]), judged(toy, spec, method, task))


def judged(toy: Toy, spec: MethodSpec, method: Method, task: Task) -> Score:
    """On rows that nothing was learned from."""
    rows = corpus_of(spec, task, JUDGED, JUDGED_SEED + task.map)
    *_, score = evaluate(toy.model, method, rows, tokens_per_batch=100_000)
    return score


def corpus_of(spec: MethodSpec, task: Task, count: int, seed: int) -> Corpus:
    """The task's rows with the method's virtual tokens where they belong."""
    return corpus(task, count, seed, spec.row_template)


def train_spec(spec: MethodSpec, recipe: Recipe, epochs: int, seed: int) -> TrainSpec:
    """The recipe as a job would have it."""
    return TrainSpec(
        base_model="toy",
        method=spec,
        n_epochs=epochs,
        batch_size=min(recipe.rows, recipe.distinct or recipe.rows),
        learning_rate=recipe.rate,
        lr_scheduler="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1e6,  # the study did not clip
        max_seq_length=256,
        tokens_per_batch=100_000,
        train_on="assistant",
        n_checkpoints=1,
        eval_steps=None,
        seed=seed,
    )
