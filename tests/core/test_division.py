"""A base model whose layers are divided over two processes (FSDP2 over gloo) teaches what a whole one does."""

import multiprocessing

import pytest
import torch
from torch.distributed.tensor import DTensor

from core.base.facts import facts_of
from core.base.nf4 import quantise_linears
from core.division import divide, without_weights
from core.model import RoutedModel
from core.preferences import Pairs
from core.run import Run
from core.specs.training import DPO
from core.team import Team
from core.together import dismiss, follow
from core.trainer import evaluate, train
from tests.conftest import make_base
from tests.core.methods_in_full import corpus_for, new_method, new_run
from tests.core.token_rows import random_corpus

CPU = torch.device("cpu")
PAIRS = Pairs(random_corpus(5, seed=1), random_corpus(5, seed=2))


def _model(precision):
    base = make_base("llama")
    if precision == "nf4":
        quantise_linears(base, head=base.lm_head, device=CPU, dtype=torch.float32)
    return RoutedModel(base)


def _follower(at, precision):
    torch.set_num_threads(1)
    team = Team.meet(1, 2, CPU, at=at)
    model = _model(precision)
    divide(model, team)
    follow(model, team)


@pytest.fixture(scope="module", params=["16 bits", "nf4"])
def divided(tmp_path_factory, request):
    """(team, divided model, whole model) of the process that leads."""
    at = tmp_path_factory.mktemp("team") / "met"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GLOO_SOCKET_IFNAME", "lo")
        context = multiprocessing.get_context("fork")
        other = context.Process(target=_follower, args=(at, request.param), daemon=True)
        other.start()
        team = Team.meet(0, 2, CPU, at=at)
    model = _model(request.param)
    divide(model, team)
    yield team, model, _model(request.param)
    dismiss(team)
    other.join(120)
    assert other.exitcode == 0


def new(kind, rows=5):
    run = new_run(kind, facts_of(make_base("llama")), n_epochs=2, batch_size=2, tokens_per_batch=20)
    run.corpus = corpus_for(run.method, rows=rows)
    return Run(run.spec, run.method, run.corpus)


def new_pairs():
    run = new("lora")
    return Run(run.spec.model_copy(update={"dpo": DPO(beta=0.3)}), run.method, PAIRS)


def losses(model, runs, team=None):
    return [event.loss for event in train(model, runs, team)]


def parts(model):
    return [p for p in model.base.parameters() if isinstance(p, DTensor)]


def test_each_process_has_its_part_of_every_layer(divided):
    _, model, whole = divided
    inside = {name for name, _ in whole.base.named_parameters() if ".layers." in name}
    assert parts(model)
    assert len(parts(model)) >= len(inside)
    assert sum(p.to_local().numel() for p in parts(model)) <= 0.51 * sum(p.numel() for p in parts(model))


@pytest.mark.parametrize("kind", ["lora", "adalora", "prefix mlp", "p-tuning"])
def test_a_divided_base_teaches_what_a_whole_one_does(divided, kind):
    """Five rows in steps of two: in the last step of an epoch one process has no row."""
    team, model, whole = divided
    expected = losses(whole, [new(kind)])
    assert losses(model, [new(kind)], team) == pytest.approx(expected, abs=1e-5)


def test_pairs_and_examples_in_step_keep_in_step(divided):
    team, model, whole = divided
    expected = losses(whole, [new("lora"), new_pairs()])
    assert losses(model, [new("lora"), new_pairs()], team) == pytest.approx(expected, abs=1e-5)


def test_the_leader_may_go_forward_alone(divided):
    _, model, whole = divided
    run = new("lora")
    said, expected = ([*evaluate(m, run.method, run.corpus, 20)][-1] for m in (model, whole))
    assert said.loss == pytest.approx(expected.loss, abs=1e-6)


def test_a_method_that_reads_weights_is_told_why_it_cannot():
    facts = without_weights(facts_of(make_base("llama")))
    with pytest.raises(ValueError, match="GRAFT_DIVIDE_BASE"):
        new_method("dora", facts)
