"""Which step is served and when a run has enough: rules, and whole attempts stopped anywhere."""

import pytest
import torch
from tiny_job import attempt, attempts, make_assignment, numbers, of_kind, sha256

from core import adapter_files
from core.specs.assignment import FINISHED, CheckpointReport, StepReport, ValidationReport
from core.specs.training import EarlyStopping
from worker.judging import Judge

# So high a rate that the random model overfits: validation gets worse while training goes on.
OVERFITS = {"learning_rate": 0.05, "n_epochs": 6, "eval_steps": 2, "lr_scheduler": "constant"}
IMPATIENT = {"patience": 2}


class Method:
    """Weights that say which step they are of."""

    def __init__(self):
        self.weight = torch.zeros(1)

    def state_dict(self):
        return {"weight": self.weight}


class Run:
    """As much of a run as a judge sees."""

    def __init__(self):
        self.step, self.total_steps, self.is_stopped, self.method = 0, 100, False, Method()

    @property
    def is_active(self):
        return not self.is_stopped and self.step < self.total_steps


class Spec:
    """As much of a spec."""

    def __init__(self, serve="best", **stopping):
        self.serve, self.early_stopping = serve, EarlyStopping(**stopping) if stopping else None


def heard(judge, run, losses):
    """The reports of validations with these losses, until one is enough."""
    said = []
    for loss in losses:
        run.step += 1
        run.method.weight.fill_(run.step)
        said.append(judge.hear(run, {"valid_loss": loss, "valid_mean_token_accuracy": 0.5}))
        if run.is_stopped:
            break
    return said


def test_the_lowest_loss_is_the_best_and_of_equals_the_first():
    judge, run = Judge(Spec()), Run()
    said = heard(judge, run, [3.0, 2.0, 2.5, 2.0, 4.0])
    assert [report.best_step for report in said] == [1, 2, 2, 2, 2]
    assert judge.served().weights["weight"] == 2
    assert not run.is_stopped
    assert judge.outcome(run).model_dump() == {
        "served_step": 2,
        "best_step": 2,
        "best_valid_loss": 2.0,
        "stopped_early": False,
    }


def test_who_wants_the_last_step_gets_it_and_hears_which_was_best():
    judge, run = Judge(Spec(serve="last")), Run()
    heard(judge, run, [2.0, 3.0])
    assert judge.served() is None
    assert (judge.outcome(run).served_step, judge.outcome(run).best_step) == (2, 1)


@pytest.mark.parametrize(
    ("stopping", "losses", "stops_at"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.1, 2.2, 1.0], 4),
        ({"patience": 2}, [3.0, 2.0, 2.1, 1.9, 2.0, 2.0], 6),
        ({"patience": 2}, [3.0, 3.0, 3.0], 3),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.9, 2.8], 3),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.7, 2.4, 2.1, 1.8], None),  # small falls add up
        ({}, [3.0] * 9, None),
    ],
)
def test_patience_is_so_many_validations_in_a_row_without_gain(stopping, losses, stops_at):
    judge, run = Judge(Spec(**stopping)), Run()
    said = heard(judge, run, losses)
    assert (run.step if run.is_stopped else None) == stops_at
    assert [report.is_enough for report in said] == [report.step == stops_at for report in said]


def test_a_run_at_its_last_step_does_not_stop_early():
    judge, run = Judge(Spec(patience=1)), Run()
    run.total_steps = 2
    heard(judge, run, [2.0, 3.0])
    assert not judge.outcome(run).stopped_early


@pytest.mark.parametrize("serve", ["best", "last"])
def test_an_overfitted_job_serves_the_step_it_is_asked_for(serve, tmp_path, tiny_entry):
    code, reports = attempt(make_assignment(tmp_path, tiny_entry, serve=serve, **OVERFITS))
    assert code == FINISHED
    losses = {report.step: report.valid_loss for report in of_kind(reports, ValidationReport)}
    best, last = min(losses, key=losses.get), max(losses)
    assert best < last  # else nothing is shown
    finished = reports[-1]
    expected = best if serve == "best" else last
    assert finished.step == last
    assert finished.metrics["valid_loss"] == losses[expected]
    assert finished.outcome.model_dump() == {
        "served_step": expected,
        "best_step": best,
        "best_valid_loss": losses[best],
        "stopped_early": False,
    }
    steps = {r.step: r.adapter for r in of_kind(reports, CheckpointReport) if r.adapter}
    assert {best, last} <= set(steps)
    assert is_same(finished.adapter, steps[expected])
    assert not is_same(finished.adapter, steps[last if serve == "best" else best])  # the control
    assert of_kind(reports, CheckpointReport)[-1].best_step == best


def test_a_job_that_no_longer_gains_ends_there_and_is_as_stopped_there(tmp_path, tiny_entry):
    _, reports = attempt(make_assignment(tmp_path, tiny_entry, early_stopping=IMPATIENT, **OVERFITS))
    last = of_kind(reports, ValidationReport)[-1]
    finished = reports[-1]
    assert last.is_enough
    assert last.step < last.total_steps
    assert of_kind(reports, StepReport)[-1].step == last.step == finished.step
    assert finished.outcome.stopped_early
    assert finished.outcome.served_step == last.best_step == last.step - IMPATIENT["patience"] * OVERFITS["eval_steps"]
    assert {last.step, last.best_step} <= {r.step for r in of_kind(reports, CheckpointReport) if r.adapter}


def test_killed_anywhere_it_stops_at_the_same_step_and_serves_the_same_bytes(tmp_path, tiny_entry):
    how = {"early_stopping": IMPATIENT, **OVERFITS}
    _, whole = attempt(make_assignment(tmp_path / "whole", tiny_entry, **how))
    for number in range(5, len(whole), 9):
        stop = {"kill_at": number} if number % 2 else {"drain_at": number}
        said = attempts(tmp_path / f"stopped{number}", tiny_entry, [stop, {"kill_at": 4}], **how)
        assert numbers(said) == numbers(whole), number
        assert said[-1].outcome == whole[-1].outcome
        assert sha256(said[-1].adapter) == sha256(whole[-1].adapter)


def test_a_judge_whose_memory_were_lost_would_show(tmp_path, tiny_entry, monkeypatch):
    how = {"early_stopping": IMPATIENT, **OVERFITS}
    _, whole = attempt(make_assignment(tmp_path / "whole", tiny_entry, **how))
    monkeypatch.setattr(Judge, "load", lambda *_: None)
    last_checkpoint = max(at for at, report in enumerate(whole) if isinstance(report, CheckpointReport))
    said = attempts(tmp_path / "stopped", tiny_entry, [{"kill_at": last_checkpoint}], **how)
    assert said[-1].outcome != whole[-1].outcome


def is_same(one, other):
    """Whether two zips hold the same weights."""
    left, right = (adapter_files.read_zip(path) for path in (one, other))
    return all(torch.equal(left.b[site], right.b[site]) for site in left.b)
