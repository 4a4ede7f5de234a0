"""Two processes over gloo learn what one does: losses, weights, ranks, whoever's rows and however they are dealt."""

import multiprocessing

import pytest
import torch

from core.model import RoutedModel
from core.run import Run
from core.team import Team
from core.together import dismiss, follow
from core.trainer import Step, train
from tests.core.methods_in_full import corpus_for, new_run

CPU = torch.device("cpu")
KINDS = ("lora", "dora", "adalora", "prefix kv", "prefix mlp", "prompt", "ensemble", "p-tuning")
# 13 rows in steps of 4 and forwards of 20 tokens: several micro-batches a step, and a last step of a single row.
UNEVEN = {"n_epochs": 5, "batch_size": 4, "tokens_per_batch": 20}
DROPPED = {"lora": {"lora_dropout": 0.3}, "adalora": {"lora_dropout": 0.2, "tinit": 2, "tfinal": 4, "deltaT": 2}}


def _follower(at, new_base):
    torch.set_num_threads(1)
    team = Team.meet(1, 2, CPU, at=at)
    follow(RoutedModel(new_base("llama")), team)


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """This process, which leads, and one that follows. It is forked, so that nothing has to be imported again."""
    from tests.conftest import make_base  # noqa: PLC0415 - a fixture of wider scope than new_base

    at = tmp_path_factory.mktemp("team") / "met"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GLOO_SOCKET_IFNAME", "lo")
        other = multiprocessing.get_context("fork").Process(target=_follower, args=(at, make_base), daemon=True)
        other.start()
        met = Team.meet(0, 2, CPU, at=at)
    yield met
    dismiss(met)
    other.join(30)
    assert other.exitcode == 0


@pytest.fixture
def model(new_base):
    return RoutedModel(new_base("llama"))


@pytest.fixture
def new(new_facts):
    def make(kind, *, seed=3, **changes):
        run = new_run(kind, new_facts("llama"), seed=seed, method=DROPPED.get(kind), **(UNEVEN | changes))
        run.corpus = corpus_for(run.method, rows=13, seed=seed)
        return Run(run.spec, run.method, run.corpus)

    return make


def events(model, runs, team=None):
    return list(train(model, runs, team))


def losses(said, run):
    return [event.loss for event in said if event.run is run]


def weights(run):
    return torch.cat([tensor.detach().flatten().float() for tensor in run.method.state_dict().values()])


def assert_same(run, said, expected_run, expected):
    assert losses(said, run) == pytest.approx(losses(expected, expected_run), abs=1e-5)
    assert (weights(run) - weights(expected_run)).abs().max() < 2e-4


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(model, team, new, kind):
    alone, together_ = new(kind), new(kind)
    expected, said = events(model, [alone]), events(model, [together_], team)
    assert len(said) == alone.total_steps == 20
    assert all(isinstance(event, Step) for event in said)
    assert_same(together_, said, alone, expected)
    assert [e.accuracy for e in said] == [e.accuracy for e in expected]
    assert [e.tokens for e in said] == [e.tokens for e in expected]
