"""Attempts at a job, inside this process: stopped anywhere, gone on with, ended as they should."""

import json
import random
import threading

import pytest
import torch
from tiny_job import STEPS, make_assignment, make_tiny_base, members, numbers, sha256, write_rows

from core import checkpoint, peft_files
from core.methods import METHODS, Lora
from core.specs.assignment import (
    DRAINED,
    FINISHED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    USER_ERROR,
    BaseModelEntry,
    CheckpointReport,
    FailedReport,
    FinishedReport,
    PhaseReport,
    StepReport,
    ValidationReport,
    WarningReport,
)
from worker.outcome import outcome


class Killed(BaseException):
    """As kill -9: nothing of ours gets to run any more."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def every_two_steps(monkeypatch):
    monkeypatch.setenv("GRAFT_CHECKPOINT_STEPS", "2")
    monkeypatch.setenv("GRAFT_THREADS", "1")
    monkeypatch.setenv("GRAFT_DEVICE", "cpu")
    monkeypatch.setenv("GRAFT_PRECISION", "fp32")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base):
    """The reports of a run that nothing interrupted, and the sha256 of its adapter."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (("CHECKPOINT_STEPS", "2"), ("THREADS", "1"), ("DEVICE", "cpu"), ("PRECISION", "fp32")):
            environment.setenv(f"GRAFT_{name}", value)
        code, reports = attempt(make_assignment(tmp_path_factory.mktemp("whole") / "job", base))
    assert code == FINISHED
    return reports, sha256(reports[-1].adapter)


def attempt(assignment, *, kill_at=None, drain_at=None):
    """(exit code or None if killed, reports). kill_at, drain_at: before and after the report of that number."""
    reports, drain = [], threading.Event()

    def say(report):
        if len(reports) == kill_at:
            raise Killed
        reports.append(report)
        if len(reports) == drain_at:
            drain.set()

    try:
        return outcome(assignment, say=say, drain=drain), reports
    except Killed:
        return None, reports


def attempts(folder, base, stops, **changes):
    """Attempts with these stops, then one to the end. stops: {"kill_at": n} or {"drain_at": n}. All their reports."""
    said = []
    for lease_epoch, stop in enumerate([*stops, {}], start=1):
        code, reports = attempt(make_assignment(folder, base, lease_epoch=lease_epoch, **changes), **stop)
        said += reports
        if code == FINISHED:
            return said
        assert code == (DRAINED if "drain_at" in stop else None)
    raise AssertionError("the last attempt did not finish")


def of_kind(reports, kind):
    return [report for report in reports if isinstance(report, kind)]


def test_a_run_says_every_step_validation_checkpoint_and_its_end(whole):
    reports, _ = whole
    assert [report.phase for report in of_kind(reports, PhaseReport)][:3] == [
        "loading_model",
        "reading_data",
        "training",
    ]
    steps = of_kind(reports, StepReport)
    assert [(step.step, step.total_steps) for step in steps] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert [step.epoch for step in steps] == [n / 4 for n in range(1, STEPS + 1)]
    assert steps[-1].trained_tokens == sum(step.tokens for step in steps)
    assert all(step.memory_bytes > 1 << 20 and step.tokens_per_s > 0 for step in steps)
    assert [report.step for report in of_kind(reports, ValidationReport)] == [3, 6, 8]
    saved = of_kind(reports, CheckpointReport)
    assert [(report.step, report.adapter and report.adapter.name) for report in saved] == [
        (2, None),
        (4, "step-4.zip"),
        (6, None),
        (8, "step-8.zip"),
    ]
    assert sorted(path.name for path in saved[-1].path.parent.iterdir()) == ["ck-00000006-e1", "ck-00000008-e1"]


def test_a_finished_run_names_its_adapter_its_metrics_and_what_the_registry_wants(whole):
    reports, _ = whole
    finished, last, valid = reports[-1], of_kind(reports, StepReport)[-1], of_kind(reports, ValidationReport)[-1]
    assert isinstance(finished, FinishedReport)
    assert (finished.step, finished.trained_tokens) == (STEPS, last.trained_tokens)
    assert finished.metrics == {
        "train_loss": last.train_loss,
        "train_mean_token_accuracy": last.train_mean_token_accuracy,
        "valid_loss": valid.valid_loss,
        "valid_mean_token_accuracy": valid.valid_mean_token_accuracy,
    }
    told = finished.details
    assert (told["peft_type"], told["base_precision"], told["computed_in"]) == ("LORA", "bf16", "fp32")
    assert told["parameters"] == sum(t.numel() for side in "ab" for t in getattr(read(finished), side).values())


def read(finished):
    return peft_files.read_zip(finished.adapter)


def test_the_adapter_says_where_it_comes_from(whole, base):
    reports, _ = whole
    files = members(reports[-1].adapter)
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "graft.json"]
    origin = json.loads(files["graft.json"])
    assert (origin["job_id"], origin["base_model"], origin["step"]) == ("ftjob-test", "tiny", STEPS)
    assert origin["spec"]["method"]["r"] == 4
    assert origin["metrics"] == reports[-1].metrics
    assert all(len(origin[name]) == 64 for name in ("base_revision_sha256", "chat_template_sha256"))
    card = files["README.md"].decode()
    assert card.startswith('---\nbase_model: "tiny"\n')
    assert origin["base_revision_sha256"] in card
    assert base.source.encode() not in b"".join(files.values())


def test_the_same_job_done_again_gives_the_same_bytes(tmp_path, base, whole):
    reports, adapter = whole
    code, again = attempt(make_assignment(tmp_path / "elsewhere" / "job", base, lease_epoch=9))
    assert code == FINISHED
    assert sha256(again[-1].adapter) == adapter
    assert numbers(again) == numbers(reports)


def test_the_adapter_depends_on_the_seed(tmp_path, base, whole):
    _, again = attempt(make_assignment(tmp_path / "job", base, seed=8))
    assert (
        members(again[-1].adapter)["adapter_model.safetensors"]
        != members(whole[0][-1].adapter)["adapter_model.safetensors"]
    )


def test_killed_before_whatever_report_it_ends_with_the_same_bytes(tmp_path, base, whole):
    reports, adapter = whole
    for kill_at in range(3, len(reports), 2):
        said = attempts(tmp_path / str(kill_at), base, [{"kill_at": kill_at}])
        assert sha256(said[-1].adapter) == adapter
        assert numbers(said) == numbers(reports)


def test_drained_after_whatever_report_it_ends_with_the_same_bytes(tmp_path, base, whole):
    reports, adapter = whole
    for drain_at in range(2, len(reports) - 2, 2):
        said = attempts(tmp_path / str(drain_at), base, [{"drain_at": drain_at}])
        assert sha256(said[-1].adapter) == adapter
        assert numbers(said) == numbers(reports)
        steps = [report.step for report in of_kind(said, StepReport)]
        assert steps == list(range(1, STEPS + 1)), "a drained attempt loses no step and repeats none"


@pytest.mark.parametrize("seed", range(3))
def test_stopped_again_and_again_it_ends_with_the_same_bytes(tmp_path, base, whole, seed):
    reports, adapter = whole
    chance = random.Random(seed)
    stops = [{chance.choice(("kill_at", "drain_at")): chance.randint(3, 9)} for _ in range(4)]
    said = attempts(tmp_path, base, stops)
    assert sha256(said[-1].adapter) == adapter
    assert numbers(said) == numbers(reports)


def corrupt(path):
    content = bytearray((path / "state.safetensors").read_bytes())
    content[len(content) // 2] ^= 255
    (path / "state.safetensors").write_bytes(content)


@pytest.mark.parametrize(("n_corrupt", "goes_on_from"), [(0, 6), (1, 4), (2, 0)])
def test_corrupt_checkpoints_cost_steps_and_change_no_byte(tmp_path, base, whole, n_corrupt, goes_on_from):
    reports, adapter = whole
    at_step_7 = next(n for n, report in enumerate(reports) if isinstance(report, StepReport) and report.step == 7)
    assert attempt(make_assignment(tmp_path, base), kill_at=at_step_7)[0] is None
    for path in sorted((tmp_path / "work" / "checkpoints").iterdir(), reverse=True)[:n_corrupt]:
        corrupt(path)
    said = attempts(tmp_path, base, [])
    assert of_kind(said, StepReport)[0].step == goes_on_from + 1
    warned = of_kind(said, WarningReport)
    assert [(report.code, report.step) for report in warned] == [("checkpoint_corrupt", goes_on_from)] * n_corrupt
    assert sha256(said[-1].adapter) == adapter


def test_drained_before_the_first_step_it_leaves_at_once_and_saves_nothing(tmp_path, base):
    code, reports = attempt(make_assignment(tmp_path, base), drain_at=1)
    assert code == DRAINED
    assert not of_kind(reports, StepReport)
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_drained_in_a_validation_it_leaves_it_to_the_next_attempt(tmp_path, base, whole):
    reports, _ = whole
    evaluating = next(
        n for n, r in enumerate(reports, start=1) if isinstance(r, PhaseReport) and r.phase == "evaluating"
    )
    code, said = attempt(make_assignment(tmp_path, base), drain_at=evaluating)
    assert (code, said[-1].step) == (DRAINED, 3)
    assert not of_kind(said, ValidationReport)
    said = attempts(tmp_path, base, [])
    assert [report.step for report in of_kind(said, ValidationReport)] == [3, 6, 8]


def test_a_checkpoint_is_also_written_when_one_is_long_ago(tmp_path, base, monkeypatch):
    monkeypatch.setenv("GRAFT_CHECKPOINT_STEPS", "1000")
    monkeypatch.setenv("GRAFT_CHECKPOINT_S", "1e-9")
    _, reports = attempt(make_assignment(tmp_path, base))
    assert [report.step for report in of_kind(reports, CheckpointReport)] == list(range(1, STEPS + 1))


def test_without_a_validation_file_nothing_is_validated(tmp_path, base):
    assignment = make_assignment(tmp_path, base).model_copy(update={"validation_file": None})
    code, reports = attempt(assignment)
    assert code == FINISHED
    assert sorted(reports[-1].metrics) == ["train_loss", "train_mean_token_accuracy"]


def test_validation_once_an_epoch_is_the_default(tmp_path, base):
    _, reports = attempt(make_assignment(tmp_path, base, eval_steps=None))
    assert [report.step for report in of_kind(reports, ValidationReport)] == [4, 8]


def test_only_the_last_epochs_stay_usable_as_models(tmp_path, base):
    _, reports = attempt(make_assignment(tmp_path, base, n_epochs=4, n_checkpoints=2))
    assert [report.step for report in of_kind(reports, CheckpointReport) if report.adapter] == [12, 16]


def test_every_faulty_row_is_named_before_the_first_step(tmp_path, base):
    assignment = make_assignment(tmp_path, base, max_seq_length=64)
    lines = assignment.training_file.read_text().splitlines()
    lines[2] = '{"messages": []}'
    assignment.training_file.write_text("\n".join([*lines, "not json"]))
    code, reports = attempt(assignment)
    failed = reports[-1]
    assert code == USER_ERROR
    assert isinstance(failed, FailedReport)
    assert (failed.code, failed.param) == ("invalid_training_file", "training_file")
    assert [detail["line"] for detail in failed.details] == [3, 13]
    assert not of_kind(reports, StepReport)


def test_every_row_that_is_too_long_is_named_with_its_tokens(tmp_path, base):
    assignment = make_assignment(tmp_path, base)
    write_rows(assignment.validation_file, 2)
    with assignment.validation_file.open("a") as file:
        for text in ("long " * 100, "fine", "longer " * 100):
            file.write(json.dumps({"prompt": text, "completion": "x"}) + "\n")
    assignment.validation_file.write_text("".join(assignment.validation_file.read_text().splitlines(keepends=True)[2:]))
    code, reports = attempt(assignment)
    failed = reports[-1]
    assert (code, failed.code, failed.param) == (USER_ERROR, "invalid_validation_file", "validation_file")
    assert [(detail["line"], detail["code"]) for detail in failed.details] == [(1, "too_long"), (3, "too_long")]
    assert "502 tokens" in failed.details[0]["message"]
    assert "256" in failed.message


def test_a_method_that_the_base_cannot_wear_is_the_customers_to_change(tmp_path, base):
    code, reports = attempt(make_assignment(tmp_path, base, method={"target_modules": ("nose",)}))
    assert (code, reports[-1].code, reports[-1].param) == (USER_ERROR, "invalid_method", "method")
    assert "nose" in reports[-1].message


def test_a_base_that_cannot_be_opened_is_named_without_its_path(tmp_path):
    gone = BaseModelEntry(id="tiny", source=str(tmp_path / "gone"))
    code, reports = attempt(make_assignment(tmp_path / "job", gone))
    assert (code, reports[-1].code) == (USER_ERROR, "base_model_unusable")
    assert str(tmp_path) not in reports[-1].message


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None],
    ids=["cuda", "python", "torch on a CPU"],
)
def test_a_lack_of_memory_has_an_exit_code_of_its_own(tmp_path, base, monkeypatch, error):
    def exhausted(_):
        if error is not None:
            raise error
        torch.empty(1 << 50)

    monkeypatch.setattr(Lora, "effect", exhausted)
    assert attempt(make_assignment(tmp_path, base))[0] == OUT_OF_MEMORY


def test_any_other_error_is_a_crash(tmp_path, base, monkeypatch):
    def broken(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Lora, "effect", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        attempt(make_assignment(tmp_path, base))


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


def test_a_run_that_runs_away_once_is_rolled_back_and_goes_on_at_half_the_rate(tmp_path, base, diverging, whole):
    diverging(5, 1)
    code, reports = attempt(make_assignment(tmp_path, base, n_checkpoints=1))
    assert code == FINISHED
    told = [(report.code, report.step) for report in of_kind(reports, WarningReport)]
    assert told == [("step_skipped", 6), ("step_skipped", 7), ("step_skipped", 8), ("rolled_back", 4)]
    rates = {step.step: step.learning_rate for step in of_kind(whole[0], StepReport)}
    steps = of_kind(reports, StepReport)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert [step.learning_rate / rates[step.step] for step in steps] == pytest.approx([1] * 5 + [0.5] * 4)


def test_before_the_first_checkpoint_a_roll_back_starts_anew(tmp_path, base, diverging, monkeypatch):
    monkeypatch.setenv("GRAFT_CHECKPOINT_STEPS", "1000")
    diverging(1, 1)
    code, reports = attempt(make_assignment(tmp_path, base, n_epochs=1, rows=24))
    assert code == FINISHED
    assert ("rolled_back", 0) in [(report.code, report.step) for report in of_kind(reports, WarningReport)]
    assert [step.step for step in of_kind(reports, StepReport)] == [1, *range(1, 9)]


def test_a_run_that_runs_away_again_fails_and_its_last_good_checkpoint_is_usable(tmp_path, base, diverging):
    diverging(5, 9)
    code, reports = attempt(make_assignment(tmp_path, base, n_checkpoints=1))
    *_, kept, failed = reports
    assert (code, failed.kind, failed.code) == (NOT_FINITE, "failed", "diverged")
    assert "learning rate" in failed.message
    assert (kept.step, kept.adapter.name, kept.path.name) == (4, "step-4.zip", "ck-00000004-e1")
    assert all(torch.isfinite(t).all() for t in peft_files.read_zip(kept.adapter).b.values())
    assert checkpoint.newest(kept.path.parent).found.step == 4
