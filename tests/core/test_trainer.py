"""Runs in step: whatever the cutting into micro-batches and whatever the company, each run learns as if alone."""

import math

import pytest
import torch
from token_rows import new_run, random_corpus

from core.effects import LowRank
from core.methods import Lora
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.trainer import Failed, Skipped, Step, evaluate, train


def weights(run):
    return [parameter.detach().clone() for parameter in run.method.parameters()]


def largest_difference(left, right):
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def trained(model, *runs):
    """Each run's events."""
    events = {id(run): [] for run in runs}
    for event in train(model, list(runs)):
        events[id(event.run)].append(event)
    return [events[id(run)] for run in runs]


def mean_loss(model, run, places):
    """What the definition says: every learned token of these rows alike. [] with gradients."""
    total, count = 0.0, 0
    for place in places:
        row = run.corpus[place]
        with model.wearing(Routing.of_rows([run.method.effect()])):
            logits = model.logits(model(Rows.of([torch.from_numpy(row.ids)])))
        learned = torch.from_numpy(row.learned).nonzero()[:, 0]
        losses = torch.nn.functional.cross_entropy(
            logits[learned - 1], torch.from_numpy(row.ids).long()[learned], reduction="sum"
        )
        total, count = total + losses, count + len(learned)
    return total / count


def test_a_step_reports_the_mean_over_learned_tokens_and_the_norm_of_its_gradient(llama):
    run = new_run(llama)
    expected = mean_loss(llama, run, run.next_rows())
    gradients = torch.autograd.grad(expected, run.parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    rate = run.learning_rate
    step = next(train(llama, [run]))
    assert (step.number, step.of, step.learning_rate) == (1, 6, rate)
    assert step.loss == pytest.approx(expected.item(), abs=1e-6)
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)
    assert step.tokens == run.trained_tokens


@pytest.mark.parametrize("tokens_per_batch", [1, 17, 30])
def test_micro_batches_learn_what_the_whole_batch_learns(llama, tokens_per_batch):
    whole, cut = new_run(llama), new_run(llama, tokens_per_batch=tokens_per_batch)
    (expected,), (events,) = trained(llama, whole), trained(llama, cut)
    assert [e.loss for e in events] == pytest.approx([e.loss for e in expected], abs=1e-6)
    assert [e.grad_norm for e in events] == pytest.approx([e.grad_norm for e in expected], rel=1e-5)
    assert [e.accuracy for e in events] == [e.accuracy for e in expected]
    assert largest_difference(weights(cut), weights(whole)) < 1e-6


def test_a_mean_of_means_is_not_that(llama):
    """The negative control: dividing each micro-batch by its own learned tokens weighs short rows too much."""
    run = new_run(llama)
    places = run.next_rows()
    of_means = sum(mean_loss(llama, run, [place]).item() for place in places) / len(places)
    assert abs(of_means - mean_loss(llama, run, places).item()) > 1e-3


def test_the_same_spec_and_data_give_the_same_bits_and_another_seed_others(llama):
    runs = [new_run(llama, seed=seed, method={"lora_dropout": 0.2}) for seed in (5, 5, 6)]
    for run in runs:
        trained(llama, run)
    first, same, other = (weights(run) for run in runs)
    assert largest_difference(first, same) == 0
    assert largest_difference(first, other) > 0


JOBS = (
    {"seed": 1, "method": {"r": 2, "lora_dropout": 0.2}},
    {"seed": 2, "method": {"r": 8, "lora_alpha": 4.0}, "batch_size": 3, "n_epochs": 3, "data_seed": 9},
    {"seed": 3, "method": {"target_modules": ("q_proj",)}, "learning_rate": 0.05, "max_grad_norm": 0.01, "rows": 5},
)


@pytest.mark.parametrize("tokens_per_batch", [40, 4096])
def test_runs_in_step_learn_what_each_learns_alone(llama, tokens_per_batch):
    jobs = [job | {"tokens_per_batch": tokens_per_batch} for job in JOBS]
    together = [new_run(llama, **job) for job in jobs]
    for run, events, job in zip(together, trained(llama, *together), jobs, strict=True):
        alone = new_run(llama, **job)
        (expected,) = trained(llama, alone)
        assert len(events) == len(expected) == run.total_steps
        assert events[0].grad_norm == pytest.approx(expected[0].grad_norm, rel=1e-6)
        assert [e.loss for e in events] == pytest.approx([e.loss for e in expected], abs=1e-5)
        # Adam divides a gradient by its own size, so an entry whose gradient is all rounding moves as far as others.
        assert largest_difference(weights(run), weights(alone)) < 0.01 * run.spec.learning_rate


def test_a_run_whose_numbers_run_away_is_skipped_and_its_neighbour_does_not_notice(llama):
    sick, well, alone = (new_run(llama, seed=4) for _ in range(3))
    with torch.no_grad():
        sick.method.b[0].fill_(float("inf"))
    before = weights(sick)[2]
    skipped, events = trained(llama, sick, well)
    (expected,) = trained(llama, alone)
    assert [(e.number, e.in_a_row) for e in skipped] == [(n, n) for n in range(1, 7)]
    assert all(isinstance(e, Skipped) for e in skipped)
    assert sick.skipped == 6
    assert sick.trained_tokens == 0
    assert largest_difference([weights(sick)[2]], [before]) == 0
    assert not sick.optimiser.state
    assert [e.loss for e in events] == [e.loss for e in expected]
    assert largest_difference(weights(well), weights(alone)) == 0


def test_one_good_step_ends_a_row_of_skipped_ones(llama):
    run = new_run(llama)
    b = run.method.b[0]
    for event in train(llama, [run]):
        assert isinstance(event, Step if event.run.step % 2 else Skipped)
        assert run.skipped_in_a_row == (run.step + 1) % 2
        with torch.no_grad():
            b.fill_(float("nan") if run.step % 2 else 0.0)
    assert run.skipped == 3


class Fragile(Lora):
    """Breaks in the third forward."""

    calls = 0

    def effect(self) -> LowRank:
        self.calls += 1
        if self.calls == 3:
            raise ValueError("this method is broken")
        return super().effect()


@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_that_breaks_ends_alone(llama, is_first):
    broken, well, alone = (new_run(llama, seed=4) for _ in range(3))
    broken.method.__class__ = Fragile
    runs = [broken, well] if is_first else [well, broken]
    events = dict(zip(map(id, runs), trained(llama, *runs), strict=True))
    (expected,) = trained(llama, alone)
    assert [type(e) for e in events[id(broken)]] == [Step, Step, Failed]
    assert str(events[id(broken)][-1].error) == "this method is broken"
    assert [e.loss for e in events[id(well)]] == pytest.approx([e.loss for e in expected], abs=1e-6)
    assert largest_difference(weights(well), weights(alone)) < 1e-6


def test_a_lack_of_memory_is_nobodys_own(llama):
    run = new_run(llama)

    def exhausted():
        raise torch.OutOfMemoryError("none left")

    run.method.effect = exhausted
    with pytest.raises(torch.OutOfMemoryError):
        list(train(llama, [run]))
    assert run.error is None


def test_runs_join_and_leave_between_turns(llama):
    first, second = new_run(llama, seed=1), new_run(llama, seed=2)
    runs, order = [first], []
    for event in train(llama, runs):
        order.append((event.run is second, event.number))
        if event.run is first and event.number == 2:
            runs.append(second)
        if event.run is first and event.number == 4:
            runs.remove(first)
    assert order == [
        *((False, 1), (False, 2), (False, 3), (True, 1), (False, 4), (True, 2)),
        *((True, number) for number in range(3, 7)),
    ]


class Penalised(Lora):
    """Pulls its first A towards zero, strongly."""

    def penalty(self) -> torch.Tensor:
        return 3.0 * self.a[0].square().sum()


def test_a_penalty_counts_once_a_step_however_it_is_cut(llama):
    norms = []
    for tokens_per_batch in (4096, 1):
        run = new_run(llama, tokens_per_batch=tokens_per_batch)
        expected = mean_loss(llama, run, run.next_rows()) + Penalised.penalty(run.method)
        gradients = torch.autograd.grad(expected, run.parameters)
        run.method.__class__ = Penalised
        step = next(train(llama, [run]))
        norms.append(step.grad_norm)
        assert step.grad_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


class Watched(Lora):
    """Notes the norm of what is left of the gradients after each step."""

    def after_step(self, step: int, of: int) -> None:
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters()))
        self.__dict__.setdefault("seen", []).append((step, of, norm))


def test_after_step_is_told_of_each_step_with_the_clipped_gradients_in_place(llama):
    run = new_run(llama, max_grad_norm=0.05)
    run.method.__class__ = Watched
    (events,) = trained(llama, run)
    assert all(e.grad_norm > 0.05 for e in events)
    assert [(step, of) for step, of, _ in run.method.seen] == [(number, 6) for number in range(1, 7)]
    assert [norm for *_, norm in run.method.seen] == pytest.approx([0.05] * 6, rel=1e-3)


def test_the_base_keeps_its_bytes_and_gets_no_gradient(llama):
    before = {name: tensor.clone() for name, tensor in llama.base.state_dict().items()}
    trained(llama, new_run(llama))
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.base.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.base.parameters())


def test_training_lowers_the_loss_on_a_bf16_base_with_fp32_masters(new_base):
    model = RoutedModel(new_base("llama", torch.bfloat16))
    run = new_run(model, n_epochs=20, rows=6)
    (events,) = trained(model, run)
    assert events[-1].loss < 0.5 * events[0].loss
    assert {p.dtype for p in run.method.parameters()} == {torch.float32}


@pytest.mark.parametrize("tokens_per_batch", [1, 25, 4096])
def test_evaluation_weighs_every_learned_token_of_the_file_alike(llama, tokens_per_batch):
    run = new_run(llama)
    trained(llama, run)
    corpus = random_corpus(7, seed=3)
    before = weights(run)
    *_, score = evaluate(llama, run.method, corpus, tokens_per_batch)
    run.corpus = corpus
    assert score.loss == pytest.approx(mean_loss(llama, run, range(7)).item(), abs=1e-6)
    assert score.count == corpus.learned_tokens
    assert 0 <= score.accuracy <= 1
    assert largest_difference(weights(run), before) == 0
    assert all(parameter.grad is None for parameter in run.method.parameters())
