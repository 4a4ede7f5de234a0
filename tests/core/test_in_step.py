"""Eight jobs of six methods in one ragged batch: each has the gradients, the losses and the weights it has alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core import learning
from core import losses as losses_of
from core.model import RoutedModel
from core.run import Run
from core.trainer import train
from tests.core.methods_in_full import new_run

KINDS = ("lora", "adalora", "prefix kv", "prompt", "p-tuning", "prefix mlp", "ensemble", "dora")
PAIRS = [("lora", "prefix kv"), ("adalora", "prompt"), ("p-tuning", "lora")]


@pytest.fixture
def model(new_base):
    return RoutedModel(new_base("llama"))


@pytest.fixture
def new(new_facts):
    def make(number, kind):
        return new_run(kind, new_facts("llama"), seed=number, data_seed=number, n_epochs=3, batch_size=3 + number % 2)

    return make


class Watched:
    """The gradients of every step of every run, as they are before clipping."""

    def __init__(self, monkeypatch):
        self.gradients = {}
        update = Run.update

        def watched(run, loss):
            found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in run.parameters]
            self.gradients.setdefault(run, []).append(torch.cat([gradient.flatten() for gradient in found]))
            return update(run, loss)

        monkeypatch.setattr(Run, "update", watched)


def losses(model, runs):
    said = {run: [] for run in runs}
    for event in train(model, runs):
        said[event.run].append(event.loss)
    return [said[run] for run in runs]


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.parameters])


def distance(one, other):
    """Relative, by the norm of the second."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kinds", [*PAIRS, KINDS], ids=lambda kinds: f"{len(kinds)} {kinds[0]}")
def test_jobs_in_step_have_the_gradients_losses_and_weights_that_each_has_alone(model, new, monkeypatch, kinds):
    watched = Watched(monkeypatch)
    together = [new(number, kind) for number, kind in enumerate(kinds)]
    in_step = losses(model, together)
    for number, (kind, run) in enumerate(zip(kinds, together, strict=True)):
        alone = new(number, kind)
        (expected,) = losses(model, [alone])
        first, first_alone = watched.gradients[run][0], watched.gradients[alone][0]
        assert distance(first, first_alone) < 1e-6, kind
        assert in_step[number] == pytest.approx(expected, rel=1e-5), kind
        assert distance(weights(run), weights(alone)) < 1e-4, kind


def test_with_a_neighbours_rows_the_gradients_are_others(model, new, monkeypatch):
    """The negative control: what a run learns from is its own rows, and the comparison would show any other."""
    watched = Watched(monkeypatch)
    right, wrong = new(0, "lora"), new(0, "lora")
    wrong.corpus = new(1, "lora").corpus
    for run in (right, wrong):
        losses(model, [run])
    assert distance(watched.gradients[wrong][0], watched.gradients[right][0]) > 0.1


def test_the_output_head_runs_once_for_all_jobs(model, new, monkeypatch):
    """It is the largest product of a small model, and small ones of its kind are slow."""
    ran, head = [], losses_of.token_losses
    monkeypatch.setattr(learning, "token_losses", lambda *args: ran.append(1) or head(*args))
    runs = [new(number, kind) for number, kind in enumerate(("lora", "prompt", "prefix kv"), 1)]
    next(iter(train(model, runs)))
    assert len(ran) == 1


def test_where_one_jobs_row_is_at_fault_the_others_learn_on(model, new):
    """A head that ran for all at once would fail for all: then it runs for each by itself."""
    sick, well, alone = new(1, "lora"), new(2, "prompt"), new(2, "prompt")
    sick.corpus = replace(sick.corpus, learned=np.ones_like(sick.corpus.learned))
    (expected,) = losses(model, [alone])
    said = {sick: [], well: []}
    for event in train(model, [sick, well]):
        said[event.run].append(event)
    assert "first token of a row" in str(sick.error)
    assert [event.loss for event in said[well]] == pytest.approx(expected, rel=1e-5)
