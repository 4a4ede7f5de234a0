"""Two processes over gloo learn what one does: losses, weights, ranks, whoever's rows and however they are dealt."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from core import together
from core.data.batches import shares
from core.model import RoutedModel
from core.orders import Outcome, Sum
from core.preferences import Pairs
from core.run import Run
from core.specs.training import DPO
from core.team import Team
from core.together import dismiss, follow
from core.trainer import Cramped, Failed, Step, train
from tests.core.methods_in_full import corpus_for, new_run
from tests.core.token_rows import random_corpus

CPU = torch.device("cpu")
KINDS = ("lora", "dora", "adalora", "prefix kv", "prefix mlp", "prompt", "ensemble", "p-tuning")
# 13 rows in steps of 4 and forwards of 20 tokens: several micro-batches a step, and a last step of a single row.
UNEVEN = {"n_epochs": 5, "batch_size": 4, "tokens_per_batch": 20}
PAIRS = Pairs(random_corpus(9, seed=1), random_corpus(9, seed=2))
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
    other.join(120)
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


def test_jobs_in_step_of_six_methods_learn_what_they_do_in_one_process(model, team, new):
    here, both = ([new(kind, seed=seed, n_epochs=2) for seed, kind in enumerate(KINDS)] for _ in range(2))
    expected, said = events(model, here), events(model, both, team)
    for alone, run in zip(here, both, strict=True):
        assert_same(run, said, alone, expected)


def test_noise_is_a_rows_own_whichever_process_it_is_dealt_to(model, team, new):
    alone, run = new("lora", neftune_alpha=5.0), new("lora", neftune_alpha=5.0)
    expected, said = events(model, [alone]), events(model, [run], team)
    assert_same(run, said, alone, expected)
    quiet = new("lora")
    assert losses(events(model, [quiet]), quiet) != pytest.approx(losses(expected, alone), abs=1e-3)


@pytest.mark.parametrize("is_held", [False, True], ids=["to the base", "to an adapter"])
def test_pairs_are_learned_as_by_one_process(model, team, new, request, is_held):
    effects, facts = (request.getfixturevalue(name) for name in ("new_effects", "new_facts"))
    reference = effects(facts())["rank 4"] if is_held else None

    def new_pairs():
        run = new("lora")
        spec = run.spec.model_copy(update={"dpo": DPO(beta=0.3), "n_epochs": 2})
        return Run(spec, run.method, PAIRS, reference=reference)

    alone, run = new_pairs(), new_pairs()
    expected, said = events(model, [alone]), events(model, [run], team)
    assert_same(run, said, alone, expected)
    assert [e.reward_margin for e in said] == pytest.approx([e.reward_margin for e in expected], abs=1e-5)


def test_without_the_others_gradients_the_weights_are_others(model, team, new, monkeypatch):
    """The negative control of the sum: the leader keeps the gradients of its own rows."""
    monkeypatch.setattr(team, "add_up", lambda gradients: Team.add_up(team, gradients.clone()))
    alone, run = new("lora"), new("lora")
    expected, said = events(model, [alone]), events(model, [run], team)
    assert losses(said, run) != pytest.approx(losses(expected, alone), abs=1e-3)


def test_divided_by_each_processs_own_tokens_the_weights_are_others(model, team, new, monkeypatch):
    """The negative control of the denominator: the mean of the processes' means."""
    alone, run = new("lora"), new("lora")
    expected, plain = events(model, [alone]), together._outcome

    def by_its_own(model, turn, leaves, team, *rest):
        own = [sum(sum(row.learned) for batch in share for row in batch) for share in turn.shares]
        owners = tuple(owner.model_copy(update={"weight": 2 * own[team.rank]}) for owner in turn.owners)
        return plain(model, turn.model_copy(update={"owners": owners}), leaves, team, *rest)

    monkeypatch.setattr(together, "_outcome", by_its_own)  # in the leader; so that its part has another weight
    said = events(model, [run], team)
    assert losses(said, run) != pytest.approx(losses(expected, alone), abs=1e-3)


def test_a_run_goes_on_with_another_number_of_processes(model, team, new):
    alone = new("adalora")
    expected = events(model, [alone])
    first, said = new("adalora"), []
    for event in train(model, [first], team):
        said.append(event)
        if event.number == 7:
            break
    second = new("adalora")
    second.load(*first.state())
    said += events(model, [second])
    assert [e.loss for e in said] == pytest.approx(losses(expected, alone), abs=1e-5)
    assert second.method.ranks() == alone.method.ranks()
    assert (weights(second) - weights(alone)).abs().max() < 2e-4


def test_where_memory_is_short_in_one_process_all_begin_the_turn_anew(model, team, new, monkeypatch):
    alone, run = new("prompt", n_epochs=1, tokens_per_batch=1000), new("prompt", n_epochs=1, tokens_per_batch=1000)
    expected, plain, refused = events(model, [alone]), together.learn_from, []

    def cramped(*args):
        if not refused:
            refused.append(1)
            raise torch.OutOfMemoryError("no room")
        return plain(*args)

    monkeypatch.setattr("core.shortage.FEWEST_TOKENS", 8)
    monkeypatch.setattr(together, "learn_from", cramped)
    said = events(model, [run], team)
    assert isinstance(said[0], Cramped)
    assert_same(run, said[1:], alone, expected)


def test_a_row_at_fault_ends_its_own_run_whichever_process_has_it(model, team, new):
    """All rows of one run are at fault, so every process meets some."""
    sick, well, alone = new("lora", seed=1), new("prompt", seed=2), new("prompt", seed=2)
    sick.corpus = replace(sick.corpus, learned=np.ones_like(sick.corpus.learned))
    expected = events(model, [alone])
    said = events(model, [sick, well], team)
    assert isinstance(said[0], Failed)
    assert "first token of a row" in str(sick.error)
    assert_same(well, said, alone, expected)


def test_rows_are_dealt_evenly_in_order_and_always_alike():
    tokens = [7, 100, 3, 90, 12, 12, 12]
    dealt = shares(tokens, 3)
    assert dealt == shares(tokens, 3)
    assert sorted(place for share in dealt for place in share) == list(range(7))
    assert all(share == sorted(share) for share in dealt)
    assert [sum(tokens[place] for place in share) for share in dealt] == [100, 90, 46]
    assert shares([5], 3) == [[0], [], []]
    assert shares(tokens, 1) == [list(range(7))]


def test_a_loss_that_is_no_number_is_told_as_it_is():
    said = Outcome(sums=(Sum(total=float("nan"), count=3),), lack=None).model_dump_json()
    assert Outcome.model_validate_json(said).sums[0].total != Outcome.model_validate_json(said).sums[0].total
