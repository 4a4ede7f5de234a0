"""No run waits for a bigger one: a much larger step takes several turns, and learns what it learns in one."""

from itertools import islice

import pytest
import torch
from token_rows import new_run

from core import learning, strides
from core.trainer import Cramped, Step, train

HUGE = {"rows": 40, "batch_size": 40, "n_epochs": 2, "tokens_per_batch": 30, "seed": 1}
SMALL = {"rows": 6, "batch_size": 2, "n_epochs": 4, "tokens_per_batch": 30, "seed": 2}


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.method.parameters()])


def tokens_forward(monkeypatch):
    """The tokens of every forward with gradients, as they come."""
    seen, plain = [], learning.token_losses

    def watched(model, hidden, ids, *rest):
        if torch.is_grad_enabled():
            seen.append(len(ids))
        return plain(model, hidden, ids, *rest)

    monkeypatch.setattr(learning, "token_losses", watched)
    return seen


@pytest.mark.parametrize("is_fair", [True, False], ids=["fair", "the control"])
def test_a_small_job_does_not_wait_for_a_huge_ones_step(llama, monkeypatch, is_fair):
    if not is_fair:
        monkeypatch.setattr(strides, "FAIR", 1000)
    huge, small = new_run(llama, **HUGE), new_run(llama, **SMALL)
    whole = sum(len(row.ids) for row in huge.corpus)
    seen, until_done = tokens_forward(monkeypatch), []
    for event in train(llama, [huge, small]):
        if event.run is small:
            until_done.append(sum(seen))
            seen.clear()
    assert len(until_done) == small.total_steps == 12
    # Each of its turns has, beside its own step, at most twice its smallest or one forward of the other's.
    assert (max(until_done) < whole / 3) is is_fair


def test_by_itself_a_run_makes_its_step_in_one_turn(llama, monkeypatch):
    run = new_run(llama, **HUGE)
    whole, seen = sum(len(row.ids) for row in run.corpus), tokens_forward(monkeypatch)
    next(train(llama, [run]))
    assert sum(seen) == whole


@pytest.mark.parametrize("method", [{"lora_dropout": 0.3}, {"r": 2}], ids=["dropout", "plain"])
def test_in_several_turns_a_step_learns_what_it_learns_in_one(llama, method):
    def both():
        return new_run(llama, **HUGE, method=method, neftune_alpha=3.0), new_run(llama, **SMALL)

    together, alone = both(), both()
    events = list(train(llama, list(together)))
    for run, single in zip(together, alone, strict=True):
        mine, expected = [e for e in events if e.run is run], list(train(llama, [single]))
        assert [(e.number, e.tokens, e.learning_rate) for e in mine] == [
            (e.number, e.tokens, e.learning_rate) for e in expected
        ]
        assert [e.loss for e in mine] == pytest.approx([e.loss for e in expected], abs=1e-5)
        assert [e.grad_norm for e in mine] == pytest.approx([e.grad_norm for e in expected], rel=1e-4)
        assert [e.accuracy for e in mine] == [e.accuracy for e in expected]
        assert (weights(run) - weights(single)).abs().max() < 0.01 * run.spec.learning_rate
    assert events[0].run is together[1]  # the control: the huge one's first step was not over with the first turn


def test_of_a_step_that_is_given_up_no_gradient_is_left(llama):
    huge, small, alone = new_run(llama, **HUGE), new_run(llama, **SMALL), new_run(llama, **HUGE)
    turns = train(llama, [huge, small])
    assert [event.run for event in islice(turns, 2)] == [small, small]
    assert any(parameter.grad is not None for parameter in huge.parameters)
    turns.close()
    assert all(parameter.grad is None for parameter in huge.parameters)
    (first, *_), (expected, *_) = train(llama, [huge]), train(llama, [alone])
    assert first.grad_norm == expected.grad_norm


def test_a_run_that_leaves_in_the_midst_of_a_step_begins_it_anew_when_it_comes_back(llama):
    huge, small, alone = new_run(llama, **HUGE), new_run(llama, **(SMALL | {"n_epochs": 9})), new_run(llama, **HUGE)
    runs, norms = [huge, small], []
    for event in train(llama, runs):
        if event.run is small and event.number == 2:
            runs.remove(huge)
        if event.run is small and event.number == 4:
            runs.append(huge)
        if event.run is huge:
            norms.append(event.grad_norm)
    assert norms == pytest.approx([event.grad_norm for event in train(llama, [alone])], rel=1e-4)


def test_where_memory_is_short_in_the_midst_of_a_step_it_begins_anew(llama, monkeypatch):
    huge, small, alone = new_run(llama, **HUGE), new_run(llama, **SMALL), new_run(llama, **HUGE)
    expected = [event.loss for event in train(llama, [alone])]
    plain, calls = learning.token_losses, []

    def cramped(*args):
        calls.append(1)
        if len(calls) == 6:
            raise torch.OutOfMemoryError
        return plain(*args)

    monkeypatch.setattr("core.shortage.FEWEST_TOKENS", 8)
    monkeypatch.setattr(learning, "token_losses", cramped)
    events = list(train(llama, [huge, small]))
    assert any(isinstance(event, Cramped) for event in events)
    losses = [event.loss for event in events if isinstance(event, Step) and event.run is huge]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_whoever_listens_hears_of_every_micro_batch(llama):
    run, heard = new_run(llama, **(HUGE | {"n_epochs": 1})), []
    list(train(llama, [run], heed=lambda: heard.append(1)))
    assert len(heard) > 10
