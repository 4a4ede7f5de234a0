"""Whole attempts with activation checkpointing: each method says, and learns, what it does without."""

import pytest
import torch
from test_company import METHOD_OF, Watch, adapter_of, job
from tiny_job import of_kind

from core.specs.assignment import FINISHED, StepReport

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
