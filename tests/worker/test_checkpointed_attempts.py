"""Whole attempts with activation checkpointing: each method says, and learns, what it does without."""

import pytest
import torch
from test_company import METHOD_OF, Watch, adapter_of, in_step, job
from tiny_job import of_kind, write_pairs

from core.specs.assignment import DRAINED, FINISHED, StepReport, WarningReport
from core.specs.training import DPO
from worker.opened import Opened

AGAIN = {"activation_checkpointing": True}
SIX = {
    "lora": {"type": "lora", "r": 4, "lora_dropout": 0.1},
    "qlora": {"type": "qlora", "r": 4, "lora_dropout": 0.1},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 3},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 4},
    "p": {"type": "p_tuning", "template": "{v:3}{input}{v:2}{target}"},
}


@pytest.fixture(autouse=True)
def _as_in_a_test(monkeypatch):
    often = {"CHECKPOINT_STEPS": "2", "CHECKPOINT_S": "300", "THREADS": "1", "DEVICE": "cpu", "PRECISION": "fp32"}
    for name, value in often.items():
        monkeypatch.setenv(f"GRAFT_{name}", value)
    for name, method in SIX.items():
        monkeypatch.setitem(METHOD_OF, name, method)


def made(assignment):
    """What a job says, alone."""
    watch = Watch()
    assert watch.company.go(assignment) == FINISHED, watch.said
    return watch.said[assignment.job_id], watch.company._opened


def losses(reports):
    return [report.train_loss for report in of_kind(reports, StepReport)]


@pytest.mark.parametrize("name", SIX)
def test_each_method_learns_the_same_to_the_bit(tmp_path, tiny_entry, name):
    plain, model = made(job(tmp_path, tiny_entry, name))
    assert not model.model.checkpointing
    again, model = made(job(tmp_path / "again", tiny_entry, name, **AGAIN))
    assert model.model.checkpointing
    assert losses(again) == losses(plain)
    weights, others = adapter_of(again), adapter_of(plain)
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[site]) for site, tensor in weights.items())


def test_the_layers_do_run_again_and_only_where_they_are_asked_to(tmp_path, tiny_entry, monkeypatch):
    """The negative control of that law: both would agree if nothing were ever run again."""
    runs = {"count": 0}

    def counted(_module, _args):
        runs["count"] += torch.is_grad_enabled()

    opened = Opened.of.__func__

    def watched(cls, assignment, settings):
        found = opened(cls, assignment, settings)
        found.model.base.model.layers[0].mlp.register_forward_pre_hook(counted)
        return found

    monkeypatch.setattr(Opened, "of", classmethod(watched))
    made(job(tmp_path, tiny_entry, "lora"))
    once, runs["count"] = runs["count"], 0
    made(job(tmp_path / "again", tiny_entry, "lora", **AGAIN))
    assert runs["count"] == 2 * once > 0


def test_a_loss_of_another_seed_would_be_seen(tmp_path, tiny_entry):
    """The negative control of the comparison."""
    plain, _ = made(job(tmp_path, tiny_entry, "lora"))
    other, _ = made(job(tmp_path / "other", tiny_entry, "lora", seed=8, **AGAIN))
    assert losses(other) != losses(plain)


def test_a_stopped_job_goes_on_checkpointed_to_the_same_losses(tmp_path, tiny_entry):
    plain, _ = made(job(tmp_path, tiny_entry, "lora"))
    watch = Watch(("lora", StepReport, 3, lambda w: w.drain.set()))
    assert watch.company.go(job(tmp_path / "again", tiny_entry, "lora", **AGAIN)) == DRAINED
    rest, opened = made(job(tmp_path / "again", tiny_entry, "lora", lease_epoch=2, **AGAIN))
    assert opened.model.checkpointing
    assert losses(watch.said["lora"]) + losses(rest) == losses(plain)


def test_pairs_in_step_with_a_prefix_learn_what_they_do_without(tmp_path, tiny_entry):
    """What pairs are held to goes forward before, in a forward of its own."""

    def company(folder, **changes):
        pairs = job(folder, tiny_entry, "lora", dpo=DPO(), learning_rate=5e-3, **changes)
        write_pairs(pairs.training_file, 12)
        write_pairs(pairs.validation_file, 5, first=100)
        code, watch = in_step([pairs, job(folder, tiny_entry, "prefix", **changes)])
        assert code == FINISHED
        return watch

    plain, again = company(tmp_path), company(tmp_path / "again", **AGAIN)
    for name in ("lora", "prefix"):
        assert losses(again.said[name]) == losses(plain.said[name])


def test_a_base_that_is_to_be_divided_keeps_all_and_the_job_is_told(tmp_path, tiny_entry, monkeypatch):
    monkeypatch.setenv("GRAFT_DIVIDE_BASE", "true")
    told, opened = made(job(tmp_path, tiny_entry, "lora", **AGAIN))
    assert not opened.model.checkpointing
    assert [warning.code for warning in of_kind(told, WarningReport)] == ["activations_kept"]
