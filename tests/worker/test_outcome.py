"""Attempts at a job, inside this process: what they say, what they leave, how they end."""

import hashlib
import json

import pytest
import torch
from tiny_job import ROWS, STEPS, attempt, make_assignment, members, numbers, of_kind, sha256, write_rows

from core import peft_files
from core.methods import Lora
from core.specs.assignment import (
    CRASHED,
    FINISHED,
    OUT_OF_MEMORY,
    USER_ERROR,
    BaseModelEntry,
    CheckpointReport,
    FailedReport,
    FinishedReport,
    PhaseReport,
    StepReport,
    ValidationReport,
)


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
        (3, "step-3.zip"),  # the best so far, as the validations at 6 and 8 are
        (4, "step-4.zip"),
        (6, "step-6.zip"),
        (8, "step-8.zip"),
    ]
    losses = [report.valid_loss for report in of_kind(reports, ValidationReport)]
    assert losses == sorted(losses, reverse=True)
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
        "valid_exact_match": valid.valid_exact_match,
    }
    told = finished.details
    assert (told["peft_type"], told["base_precision"], told["computed_in"]) == ("LORA", "bf16", "fp32")
    assert told["parameters"] == sum(t.numel() for side in "ab" for t in getattr(read(finished), side).values())


def read(finished):
    return peft_files.read_zip(finished.adapter)


def test_the_adapter_says_where_it_comes_from(whole, tiny_entry):
    reports, _ = whole
    files = members(reports[-1].adapter)
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "graft.json"]
    origin = json.loads(files["graft.json"])
    assert (origin["job_id"], origin["base_model"], origin["step"]) == ("ftjob-test", "tiny", STEPS)
    assert origin["spec"]["method"]["r"] == 4
    assert origin["metrics"] == reports[-1].metrics
    assert all(len(origin[name]) == 64 for name in ("base_revision_sha256", "chat_template_sha256"))
    assert origin["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in files.items()
        if name != "graft.json"
    }
    dataset = origin["dataset"]
    assert (dataset["training_file"]["rows"], dataset["training_file"]["file_id"]) == (ROWS, None)
    assert all(len(dataset[name]["sha256"]) == 64 for name in ("training_file", "validation_file"))
    assert (origin["origin"], origin["members"]) == ("training", 1)
    card = files["README.md"].decode()
    assert card.startswith('---\nbase_model: "tiny"\n')
    assert origin["base_revision_sha256"] in card
    assert tiny_entry.source.encode() not in b"".join(files.values())


def test_the_same_job_done_again_gives_the_same_bytes(tmp_path, tiny_entry, whole):
    reports, adapter = whole
    code, again = attempt(make_assignment(tmp_path / "elsewhere" / "job", tiny_entry, lease_epoch=9))
    assert code == FINISHED
    assert sha256(again[-1].adapter) == adapter
    assert numbers(again) == numbers(reports)


def test_the_adapter_depends_on_the_seed(tmp_path, tiny_entry, whole):
    _, again = attempt(make_assignment(tmp_path / "job", tiny_entry, seed=8))
    assert (
        members(again[-1].adapter)["adapter_model.safetensors"]
        != members(whole[0][-1].adapter)["adapter_model.safetensors"]
    )


def test_a_checkpoint_is_also_written_when_one_is_long_ago(tmp_path, tiny_entry):
    _, reports = attempt(make_assignment(tmp_path, tiny_entry), checkpoint_steps=1000, checkpoint_s=1e-9)
    assert [report.step for report in of_kind(reports, CheckpointReport)] == list(range(1, STEPS + 1))


def test_without_a_validation_file_nothing_is_validated(tmp_path, tiny_entry):
    assignment = make_assignment(tmp_path, tiny_entry).model_copy(update={"validation_file": None})
    code, reports = attempt(assignment)
    assert code == FINISHED
    assert sorted(reports[-1].metrics) == ["train_loss", "train_mean_token_accuracy"]


def test_validation_once_an_epoch_is_the_default(tmp_path, tiny_entry):
    _, reports = attempt(make_assignment(tmp_path, tiny_entry, eval_steps=None))
    assert [report.step for report in of_kind(reports, ValidationReport)] == [4, 8]


def test_only_the_last_epochs_stay_usable_as_models(tmp_path, tiny_entry):
    assignment = make_assignment(tmp_path, tiny_entry, n_epochs=4, n_checkpoints=2)
    _, reports = attempt(assignment.model_copy(update={"validation_file": None}))
    assert [report.step for report in of_kind(reports, CheckpointReport) if report.adapter] == [12, 16]


def test_every_faulty_row_is_named_before_the_first_step(tmp_path, tiny_entry):
    assignment = make_assignment(tmp_path, tiny_entry, max_seq_length=64)
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


def test_every_row_that_is_too_long_is_named_with_its_tokens(tmp_path, tiny_entry):
    assignment = make_assignment(tmp_path, tiny_entry)
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


def test_a_method_that_the_base_cannot_wear_is_the_customers_to_change(tmp_path, tiny_entry):
    code, reports = attempt(make_assignment(tmp_path, tiny_entry, method={"target_modules": ("nose",)}))
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
def test_a_lack_of_memory_has_an_exit_code_of_its_own(tmp_path, tiny_entry, monkeypatch, error):
    def exhausted(_):
        if error is not None:
            raise error
        torch.empty(1 << 50)

    monkeypatch.setattr(Lora, "effect", exhausted)
    assert attempt(make_assignment(tmp_path, tiny_entry))[0] == OUT_OF_MEMORY


def test_any_other_error_is_a_crash(tmp_path, tiny_entry, monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Lora, "effect", broken)
    assert attempt(make_assignment(tmp_path, tiny_entry))[0] == CRASHED
    assert "RuntimeError: a bug" in capsys.readouterr().err
