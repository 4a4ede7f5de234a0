"""A run that was stopped and loaded again is the run that was never stopped."""

import pytest
import torch
from token_rows import new_run, random_corpus, spec

from core import run as run_module
from core.data.batches import order
from core.run import Run
from core.trainer import train


def finish(model, run):
    """The loss of each step, in order."""
    return [event.loss for event in train(model, [run])]


def weights(run):
    return [parameter.detach().clone() for parameter in run.method.parameters()]


def are_same_bits(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("method", [{"lora_dropout": 0.3}, {"r": 2, "use_rslora": True}])
def test_loaded_after_any_step_it_ends_with_the_same_bits_and_losses(llama, method):
    whole = new_run(llama, method=method, n_epochs=3, batch_size=3)
    states, losses = [whole.state()], []
    for event in train(llama, [whole]):
        losses.append(event.loss)
        tensors, facts = whole.state()
        states.append(({name: tensor.clone() for name, tensor in tensors.items()}, facts))
    assert len(losses) == whole.total_steps == 12
    for stopped in range(1, whole.total_steps + 1):
        again = new_run(llama, method=method, n_epochs=3, batch_size=3, start=stopped)
        again.load(*states[stopped])
        assert finish(llama, again) == losses[stopped:]
        assert are_same_bits(weights(again), weights(whole))


@pytest.mark.parametrize("lost", ["optimiser.0.exp_avg", "optimiser.0.exp_avg_sq"])
def test_a_moment_that_were_lost_would_show_in_the_bits(llama, lost):
    whole, stopped, again = (new_run(llama) for _ in range(3))
    finish(llama, whole)
    steps = train(llama, [stopped])
    next(steps), next(steps)
    tensors, facts = stopped.state()
    again.load(tensors | {lost: torch.zeros_like(tensors[lost])}, facts)
    finish(llama, again)
    assert not are_same_bits(weights(again), weights(whole))


@pytest.mark.parametrize("counter", ["step", "rate_factor"])
def test_a_counter_that_were_lost_would_show_in_the_bits(llama, counter):
    whole, stopped, again = (new_run(llama) for _ in range(3))
    finish(llama, whole)
    steps = train(llama, [stopped])
    next(steps), next(steps)
    tensors, facts = stopped.state()
    again.load(tensors, facts | {counter: 0})
    finish(llama, again)
    assert not are_same_bits(weights(again), weights(whole))


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(llama):
    run = new_run(llama, rows=10, n_epochs=2, batch_size=4)
    seen = []
    while run.is_active:
        seen.append(run.next_rows())
        run.step += 1
    assert [len(rows) for rows in seen] == [4, 4, 2, 4, 4, 2]
    first, second = ([row for rows in epoch for row in rows] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_an_epochs_order_is_drawn_once_however_many_runs_take_turns(llama, monkeypatch):
    drawn = []
    monkeypatch.setattr(run_module, "order", lambda *which: drawn.append(which) or order(*which))
    runs = [new_run(llama, rows=10, n_epochs=2, batch_size=4, seed=seed) for seed in range(8)]
    for _ in range(6):
        for run in runs:
            run.next_rows()
            run.step += 1
    assert sorted(drawn) == [(10, seed, epoch) for seed in range(8) for epoch in (0, 1)]


def test_the_state_of_another_spec_is_refused_and_changes_nothing(llama):
    other, run = new_run(llama, learning_rate=0.5), new_run(llama)
    next(train(llama, [other]))
    before = weights(run)
    with pytest.raises(ValueError, match="another training spec"):
        run.load(*other.state())
    assert run.step == 0
    assert are_same_bits(weights(run), before)


def test_how_many_tokens_go_forward_at_once_may_change_between_attempts(llama):
    small, run = new_run(llama, tokens_per_batch=16), new_run(llama, tokens_per_batch=64)
    next(train(llama, [small]))
    run.load(*small.state())
    assert run.step == 1


def test_a_roll_back_halves_the_rate_and_forgets_what_was_skipped(llama):
    run = new_run(llama, lr_scheduler="constant", warmup_ratio=0.0)
    next(train(llama, [run]))
    tensors, facts = run.state()
    run.skipped_in_a_row = 3
    run.roll_back(tensors, facts | {"skipped_in_a_row": 2})
    assert (run.step, run.skipped_in_a_row) == (1, 0)
    assert run.learning_rate == 0.5 * run.spec.learning_rate


def test_a_corpus_without_rows_is_refused(new_facts, new_lora):
    with pytest.raises(ValueError, match="no rows"):
        Run(spec(), new_lora(new_facts()), random_corpus(0))


def test_masters_that_are_not_fp32_are_refused(new_facts, new_lora):
    with pytest.raises(ValueError, match="float32"):
        Run(spec(), new_lora(new_facts()).to(torch.bfloat16), random_corpus(3))


def test_an_entry_of_bf16_would_not_move_where_one_of_fp32_does():
    """Why masters are fp32: the control of the refusal above."""
    for dtype, moved in ((torch.bfloat16, 0), (torch.float32, 100)):
        entries = torch.nn.Parameter(torch.full((100,), 0.1, dtype=dtype))
        optimiser = torch.optim.AdamW([entries], lr=1e-5, weight_decay=0.0)
        entries.grad = torch.ones_like(entries)
        optimiser.step()
        assert int((entries != torch.full((100,), 0.1, dtype=dtype)).sum()) == moved
