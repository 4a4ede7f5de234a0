"""Attempts at a job that are killed, drained, damaged or run away, and what the next one makes of it."""

import random

import pytest
import torch
from tiny_job import STEPS, attempt, attempts, make_assignment, numbers, of_kind, sha256

from core import checkpoint, peft_files
from core.methods import METHODS, Lora
from core.run import Run
from core.specs.assignment import (
    DRAINED,
    FINISHED,
    NOT_FINITE,
    PhaseReport,
    StepReport,
    ValidationReport,
    WarningReport,
)


def test_killed_before_whatever_report_it_ends_with_the_same_bytes(tmp_path, tiny_entry, whole):
    reports, adapter = whole
    for kill_at in range(3, len(reports), 2):
        said = attempts(tmp_path / str(kill_at), tiny_entry, [{"kill_at": kill_at}])
        assert sha256(said[-1].adapter) == adapter
        assert numbers(said) == numbers(reports)


def test_drained_after_whatever_report_it_ends_with_the_same_bytes(tmp_path, tiny_entry, whole):
    reports, adapter = whole
    for drain_at in range(2, len(reports) - 2, 2):
        said = attempts(tmp_path / str(drain_at), tiny_entry, [{"drain_at": drain_at}])
        assert sha256(said[-1].adapter) == adapter
        assert numbers(said) == numbers(reports)
        steps = [report.step for report in of_kind(said, StepReport)]
        assert steps == list(range(1, STEPS + 1)), "a drained attempt loses no step and repeats none"


@pytest.mark.parametrize("seed", range(3))
def test_stopped_again_and_again_it_ends_with_the_same_bytes(tmp_path, tiny_entry, whole, seed):
    reports, adapter = whole
    chance = random.Random(seed)
    stops = [{chance.choice(("kill_at", "drain_at")): chance.randint(3, 9)} for _ in range(4)]
    said = attempts(tmp_path, tiny_entry, stops)
    assert sha256(said[-1].adapter) == adapter
    assert numbers(said) == numbers(reports)


def corrupt(path):
    content = bytearray((path / "state.safetensors").read_bytes())
    content[len(content) // 2] ^= 255
    (path / "state.safetensors").write_bytes(content)


@pytest.mark.parametrize(("n_corrupt", "goes_on_from"), [(0, 6), (1, 4), (2, 0)])
def test_corrupt_checkpoints_cost_steps_and_change_no_byte(tmp_path, tiny_entry, whole, n_corrupt, goes_on_from):
    reports, adapter = whole
    at_step_7 = next(n for n, report in enumerate(reports) if isinstance(report, StepReport) and report.step == 7)
    assert attempt(make_assignment(tmp_path, tiny_entry), kill_at=at_step_7)[0] is None
    for path in sorted((tmp_path / "work" / "checkpoints").iterdir(), reverse=True)[:n_corrupt]:
        corrupt(path)
    said = attempts(tmp_path, tiny_entry, [])
    assert of_kind(said, StepReport)[0].step == goes_on_from + 1
    warned = of_kind(said, WarningReport)
    assert [(report.code, report.step) for report in warned] == [("checkpoint_corrupt", goes_on_from)] * n_corrupt
    assert sha256(said[-1].adapter) == adapter


def test_drained_before_the_first_step_it_leaves_at_once_and_saves_nothing(tmp_path, tiny_entry):
    code, reports = attempt(make_assignment(tmp_path, tiny_entry), drain_at=1)
    assert code == DRAINED
    assert not of_kind(reports, StepReport)
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_drained_in_a_validation_it_leaves_it_to_the_next_attempt(tmp_path, tiny_entry, whole):
    reports, _ = whole
    evaluating = next(
        n for n, r in enumerate(reports, start=1) if isinstance(r, PhaseReport) and r.phase == "evaluating"
    )
    code, said = attempt(make_assignment(tmp_path, tiny_entry), drain_at=evaluating)
    assert (code, said[-1].step) == (DRAINED, 3)
    assert not of_kind(said, ValidationReport)
    said = attempts(tmp_path, tiny_entry, [])
    assert [report.step for report in of_kind(said, ValidationReport)] == [3, 6, 8]


class Diverging(Lora):
    """Its numbers run away after a step, once or for ever; class attributes say which."""

    breaks_after, times = 5, 1

    def after_step(self, step: int, of: int) -> None:
        assert 1 <= step <= of
        if step == Diverging.breaks_after and Diverging.times:
            Diverging.times -= 1
            with torch.no_grad():
                self.b[0].fill_(float("nan"))


@pytest.fixture
def diverging(monkeypatch):
    monkeypatch.setitem(METHODS, "lora", Diverging)

    def configure(breaks_after, times):
        monkeypatch.setattr(Diverging, "breaks_after", breaks_after)
        monkeypatch.setattr(Diverging, "times", times)

    return configure


def test_a_run_that_runs_away_once_is_rolled_back_and_goes_on_at_half_the_rate(tmp_path, tiny_entry, diverging, whole):
    diverging(5, 1)
    code, reports = attempt(make_assignment(tmp_path, tiny_entry, n_checkpoints=1))
    assert code == FINISHED
    told = [(report.code, report.step) for report in of_kind(reports, WarningReport)]
    assert told == [("step_skipped", 6), ("step_skipped", 7), ("step_skipped", 8), ("rolled_back", 4)]
    rates = {step.step: step.learning_rate for step in of_kind(whole[0], StepReport)}
    steps = of_kind(reports, StepReport)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert [step.learning_rate / rates[step.step] for step in steps] == pytest.approx([1] * 5 + [0.5] * 4)
    assert not list((tmp_path / "work" / "checkpoints").glob("corrupt-*"))


def test_killed_around_a_roll_back_it_ends_with_the_same_bytes(tmp_path, tiny_entry, monkeypatch):
    update = Run.update

    def too_fast(run, loss):
        norm = update(run, loss)
        if run.step == 5 and run.rate_factor == 1:
            with torch.no_grad():
                run.method.b[0].fill_(float("nan"))
        return norm

    monkeypatch.setattr(Run, "update", too_fast)
    _, reports = attempt(make_assignment(tmp_path / "whole", tiny_entry, n_checkpoints=1))
    rolled_back = next(n for n, r in enumerate(reports) if isinstance(r, WarningReport) and r.code == "rolled_back")
    for stop in ({stop: at} for stop in ("kill_at", "drain_at") for at in range(rolled_back - 3, len(reports) - 2, 2)):
        said = attempts(tmp_path / str(stop), tiny_entry, [stop], n_checkpoints=1)
        assert sha256(said[-1].adapter) == sha256(reports[-1].adapter)


def test_before_the_first_checkpoint_a_roll_back_starts_anew(tmp_path, tiny_entry, diverging):
    diverging(1, 1)
    code, reports = attempt(make_assignment(tmp_path, tiny_entry, n_epochs=1, rows=24), checkpoint_steps=1000)
    assert code == FINISHED
    assert ("rolled_back", 0) in [(report.code, report.step) for report in of_kind(reports, WarningReport)]
    assert [step.step for step in of_kind(reports, StepReport)] == [1, *range(1, 9)]
    assert [report.step for report in of_kind(reports, ValidationReport)] == [3, 6, 8]
    saved = sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir())
    assert saved == ["ck-00000006-e1", "ck-00000008-e1"]  # each was the best when it was made


def test_a_run_that_runs_away_again_fails_and_its_last_good_checkpoint_is_usable(tmp_path, tiny_entry, diverging):
    diverging(5, 9)
    code, reports = attempt(make_assignment(tmp_path, tiny_entry, n_checkpoints=1))
    *_, kept, failed = reports
    assert (code, failed.kind, failed.code) == (NOT_FINITE, "failed", "diverged")
    assert "learning rate" in failed.message
    assert (kept.step, kept.adapter.name, kept.path.name) == (4, "step-4.zip", "ck-00000004-e1")
    assert all(torch.isfinite(t).all() for t in peft_files.read_zip(kept.adapter).b.values())
    assert checkpoint.newest(kept.path.parent).found.step == 4
