"""Whole attempts that learn from pairs: validated, judged, stopped anywhere, and in step with others."""

import math

import pytest
from test_company import Watch, adapter_of, alone, assert_same, in_step, job
from tiny_job import attempt, make_assignment, numbers, of_kind, sha256, write_pairs

from core.specs.assignment import (
    FINISHED,
    USER_ERROR,
    FinishedReport,
    SamplesReport,
    StepReport,
    ValidationReport,
)
from core.specs.training import DPO
from worker.progress import step_event, validation_event
from worker.validating import Validation

HOW = {"dpo": DPO(), "learning_rate": 5e-3}
UNTOLD = pytest.approx(math.log(2), abs=1e-5)  # the loss of who prefers as its reference does


@pytest.fixture(autouse=True)
def _as_in_a_test(monkeypatch):
    often = {"CHECKPOINT_STEPS": "2", "CHECKPOINT_S": "300", "THREADS": "1", "DEVICE": "cpu", "PRECISION": "fp32"}
    for name, value in often.items():
        monkeypatch.setenv(f"GRAFT_{name}", value)


def with_pairs(assignment):
    """The same job on files of pairs."""
    write_pairs(assignment.training_file, 12)
    write_pairs(assignment.validation_file, 5, first=100)
    return assignment


def of_pairs(folder, base, **changes):
    return with_pairs(make_assignment(folder, base, **(HOW | changes)))


def run_of_pairs(folder, base, stops, **changes):
    """As tiny_job.attempts, of pairs."""
    said = []
    for lease_epoch, stop in enumerate([*stops, {}], start=1):
        code, reports = attempt(of_pairs(folder, base, lease_epoch=lease_epoch, **changes), **stop)
        said += reports
    assert code == FINISHED
    return said


def test_the_reward_margin_grows_and_is_told_in_place_of_tokens_that_are_right(tmp_path, tiny_entry):
    code, reports = attempt(of_pairs(tmp_path, tiny_entry, n_epochs=6))
    assert code == FINISHED, reports[-1]
    steps, validations = of_kind(reports, StepReport), of_kind(reports, ValidationReport)
    assert steps[0].train_loss == UNTOLD
    assert steps[-1].train_reward_margin > 0.5 > abs(steps[0].train_reward_margin)
    assert steps[-1].train_reward_accuracy == 1.0
    assert validations[-1].valid_reward_margin > validations[0].valid_reward_margin
    for report in (*steps, *validations):
        assert (getattr(report, "train_mean_token_accuracy", None), getattr(report, "valid_exact_match", None)) == (
            None,
            None,
        )
    assert set(reports[-1].metrics) >= {"valid_loss", "valid_reward_margin", "train_reward_accuracy"}
    sample = of_kind(reports, SamplesReport)[0].samples[0]
    assert sample.expected == "10000 10000 <|im_end|>"  # the preferred one


def test_a_supervised_job_tells_of_no_rewards(tmp_path, tiny_entry):
    _, reports = attempt(make_assignment(tmp_path, tiny_entry, n_epochs=1))
    step, validation = of_kind(reports, StepReport)[0], of_kind(reports, ValidationReport)[0]
    assert (step.train_reward_margin, validation.valid_reward_margin) == (None, None)
    told = step_event(step).data | validation_event(validation, step).data
    assert not [name for name in told if "reward" in name]


def test_events_carry_the_rewards_of_steps_and_validations(tmp_path, tiny_entry):
    _, reports = attempt(of_pairs(tmp_path, tiny_entry, n_epochs=1))
    step, validation = of_kind(reports, StepReport)[-1], of_kind(reports, ValidationReport)[-1]
    assert step_event(step).data["train_reward_margin"] == step.train_reward_margin
    told = validation_event(validation, step).data
    assert told["valid_reward_accuracy"] == validation.valid_reward_accuracy
    assert told["valid_mean_token_accuracy"] is None


def test_the_best_step_is_that_of_the_lowest_loss_over_pairs_and_who_gains_no_more_stops(tmp_path, tiny_entry):
    how = {"learning_rate": 0.1, "lr_scheduler": "constant", "n_epochs": 8, "eval_steps": 2}
    _, reports = attempt(of_pairs(tmp_path, tiny_entry, early_stopping={"patience": 2}, **how))
    losses = {report.step: report.valid_loss for report in of_kind(reports, ValidationReport)}
    best, last = min(losses, key=losses.get), max(losses)
    assert last < 32  # it stopped early
    assert last == best + 4
    assert (reports[-1].outcome.served_step, reports[-1].outcome.stopped_early) == (best, True)
    assert reports[-1].metrics["valid_loss"] == losses[best]


def test_killed_or_drained_anywhere_it_ends_with_the_same_bytes(tmp_path, tiny_entry):
    whole = run_of_pairs(tmp_path / "whole", tiny_entry, [])
    for number in range(4, len(whole), 9):
        stop = {"kill_at": number} if number % 2 else {"drain_at": number}
        said = run_of_pairs(tmp_path / f"stopped{number}", tiny_entry, [stop, {"kill_at": 4}])
        assert numbers(said) == numbers(whole), number
        assert sha256(said[-1].adapter) == sha256(whole[-1].adapter)


def test_who_goes_on_from_an_adapter_is_held_to_that_adapter_across_a_stop(tmp_path, tiny_entry):
    _, first = attempt(make_assignment(tmp_path / "first", tiny_entry))
    found = []
    for name, stops in (("whole", [{}]), ("stopped", [{"kill_at": 9}, {}])):
        said = []
        for epoch, stop in enumerate(stops, start=1):
            plain = of_pairs(tmp_path / name, tiny_entry, lease_epoch=epoch, method={"lora_dropout": 0.0})
            said += attempt(plain.model_copy(update={"continue_from": first[-1].adapter}), **stop)[1]
        found.append(said)
    assert of_kind(found[0], StepReport)[0].train_loss == UNTOLD
    assert numbers(found[0]) == numbers(found[1])


def test_held_to_the_bare_base_instead_it_would_not_begin_there(tmp_path, tiny_entry, monkeypatch):
    """The control of the law above."""
    _, first = attempt(make_assignment(tmp_path / "first", tiny_entry))
    monkeypatch.setattr("worker.beginning.reference_of", lambda *_: None)
    plain = of_pairs(tmp_path / "second", tiny_entry, method={"lora_dropout": 0.0})
    _, reports = attempt(plain.model_copy(update={"continue_from": first[-1].adapter}))
    assert of_kind(reports, StepReport)[0].train_loss != UNTOLD


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p", "adalora"])
def test_every_method_learns_from_pairs(tmp_path, tiny_entry, kind):
    said = with_pairs(job(tmp_path, tiny_entry, kind, **HOW))
    watch = Watch()
    assert watch.company.go(said) == FINISHED, watch.said[kind][-1]
    assert of_kind(watch.said[kind], ValidationReport)[-1].valid_reward_margin is not None


def test_in_step_with_a_supervised_job_both_are_as_alone(tmp_path, tiny_entry):
    def pair():
        return with_pairs(job(tmp_path, tiny_entry, "lora-dpo", **HOW))

    code, watch = in_step([pair(), job(tmp_path, tiny_entry, "prefix")])
    assert (code, watch.codes) == (FINISHED, {"lora-dpo": FINISHED, "prefix": FINISHED})
    assert_same(watch.said["prefix"], alone(tmp_path, tiny_entry, "prefix"))
    single = Watch()
    single.company.go(pair().model_copy(update={"work_dir": tmp_path / "other"}))
    assert_same(watch.said["lora-dpo"], single.said["lora-dpo"])
    assert of_kind(watch.said["lora-dpo"], FinishedReport)
    assert adapter_of(watch.said["lora-dpo"])


@pytest.mark.parametrize(("dpo", "words"), [(DPO(), "dpo learns from preference pairs"), (None, "only dpo learns")])
def test_files_that_do_not_fit_the_job_are_refused_by_their_name(tmp_path, tiny_entry, dpo, words):
    assignment = make_assignment(tmp_path, tiny_entry, dpo=dpo)
    if dpo:
        write_pairs(assignment.training_file, 12)
    else:
        write_pairs(assignment.validation_file, 12)
    code, reports = attempt(assignment)
    assert (code, reports[-1].param) == (USER_ERROR, "validation_file")
    assert words in reports[-1].message


def test_an_answer_that_is_too_long_is_refused_by_its_line(tmp_path, tiny_entry):
    code, reports = attempt(of_pairs(tmp_path, tiny_entry, max_seq_length=30))
    assert (code, reports[-1].code) == (USER_ERROR, "invalid_training_file")
    assert "tokens; at most 30" in reports[-1].message


@pytest.mark.parametrize(("tokens_per_batch", "forwards"), [(4096, 1), (256, 5)])
def test_a_batch_of_a_validation_counts_what_its_references_read(
    tmp_path, tiny_entry, monkeypatch, tokens_per_batch, forwards
):
    """A pair of it has some 140 tokens: two go into 256 alone, but one with what its reference reads."""
    seen, original = [], Validation.scores
    monkeypatch.setattr(Validation, "scores", lambda *given: (seen.append(1) or score for score in original(*given)))
    attempt(of_pairs(tmp_path, tiny_entry, n_epochs=1, eval_steps=None, tokens_per_batch=tokens_per_batch))
    assert len(seen) == forwards
