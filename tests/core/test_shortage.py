"""A turn for which memory is not enough begins anew in smaller parts, and a run learns what it would have."""

import pytest
import torch
from token_rows import new_run

from core import learning
from core.shortage import FEWEST_TOKENS, is_lack_of_memory, smaller
from core.trainer import Cramped, Step, train


class Cramping:
    """A forward that has room for so many tokens, and raises beyond."""

    def __init__(self, monkeypatch, most, error=MemoryError):
        self.most, self.error, self.refused = most, error, 0
        self.plain = learning.token_losses
        monkeypatch.setattr(learning, "token_losses", self)

    def __call__(self, model, hidden, ids, *rest):
        if len(ids) > self.most:
            self.refused += 1
            raise self.error("no room")
        return self.plain(model, hidden, ids, *rest)


def weights(run):
    return [parameter.detach().clone() for parameter in run.method.parameters()]


def events_of(model, *runs):
    return list(train(model, runs))


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_lack_of_memory_halves_the_micro_batch_and_changes_no_step(llama, monkeypatch, error):
    roomy = new_run(llama, rows=24, batch_size=12)
    expected = events_of(llama, roomy)
    cramping = Cramping(monkeypatch, 90, error)
    run = new_run(llama, rows=24, batch_size=12)
    events = events_of(llama, run)
    cramped = [event for event in events if isinstance(event, Cramped)]
    steps = [event for event in events if isinstance(event, Step)]
    assert 1 <= len(cramped) == cramping.refused <= 4
    assert run.spec.tokens_per_batch == cramped[-1].tokens_per_batch < roomy.spec.tokens_per_batch
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in expected], abs=1e-5)
    assert [step.grad_norm for step in steps] == pytest.approx([step.grad_norm for step in expected], rel=1e-4)
    for mine, theirs in zip(weights(run), weights(roomy), strict=True):
        assert (mine - theirs).abs().max() < 0.02 * run.spec.learning_rate


def test_what_is_left_of_a_turn_that_did_not_fit_would_be_learned_twice(llama, monkeypatch):
    """The negative control: the gradients of its first parts are to be cleared."""
    expected = events_of(llama, new_run(llama, rows=48, batch_size=24, tokens_per_batch=140))
    sizes = iter([False, True])

    def refuse_second(*given, plain=learning.token_losses):
        if next(sizes, False):
            raise MemoryError
        return plain(*given)

    monkeypatch.setattr(learning, "token_losses", refuse_second)
    run = new_run(llama, rows=48, batch_size=24, tokens_per_batch=140)
    monkeypatch.setattr(run.optimiser, "zero_grad", lambda: None)
    events = [event for event in events_of(llama, run) if isinstance(event, Step)]
    assert abs(events[0].grad_norm / expected[0].grad_norm - 1) > 1e-2


def test_runs_in_step_are_cramped_together_and_each_goes_on(llama, monkeypatch):
    Cramping(monkeypatch, 80)  # of one run: each has a loss of its own
    runs = [new_run(llama, rows=24, batch_size=12, seed=seed) for seed in (1, 2)]
    events = events_of(llama, *runs)
    assert {event.run for event in events if isinstance(event, Cramped)} == set(runs)
    assert all(run.step == run.total_steps for run in runs)


def test_a_row_that_has_no_room_by_itself_is_a_lack_of_memory(llama, monkeypatch):
    Cramping(monkeypatch, 1)
    with pytest.raises(MemoryError):
        events_of(llama, new_run(llama))


def test_another_error_is_no_lack_of_memory(llama, monkeypatch):
    Cramping(monkeypatch, 1, KeyError)
    run = new_run(llama)
    events = events_of(llama, run)
    assert not any(isinstance(event, Cramped) for event in events)
    assert isinstance(run.error, KeyError)
    assert not is_lack_of_memory(RuntimeError("sizes of tensors must match"))


@pytest.mark.parametrize(
    ("batches", "tokens"),
    [
        ([[100, 100], [50]], 100),
        ([[200]], None),
        ([[30, 30]], None),
        ([[60, 60]], FEWEST_TOKENS),
        ([[9], [64, 300]], 182),
    ],
)
def test_half_of_the_largest_micro_batch_is_next_unless_it_cannot_be_cut(batches, tokens):
    assert smaller(batches) == tokens
