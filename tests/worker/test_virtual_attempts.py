"""Whole attempts of methods with virtual tokens: trained, exported, read again, and started from."""

import json
import zipfile

import pytest
import torch
from tiny_job import PLAIN, attempt, make_assignment, make_tiny_base, of_kind

from core import adapter_files
from core.base.load import open_tokenizer
from core.base.words import Words
from core.effects import Ensemble, SoftPrompt
from core.specs.assignment import FINISHED, USER_ERROR, StepReport, ValidationReport
from core.specs.method import AdaLoraSpec, PromptTuningSpec, PTuningSpec
from core.specs.template import parse
from core.specs.training import TrainSpec

TEMPLATE = "{v:2} so {input}{v:1}?{target}"


@pytest.fixture
def tiny(tmp_path):
    return make_tiny_base(tmp_path / "base")


def finished(folder, base, method, **assigned):
    """The reports of a job of this method, and its adapter."""
    spec = TrainSpec(base_model="tiny", method=method, **PLAIN)
    assignment = make_assignment(folder, base).model_copy(update={"spec": spec, **assigned})
    code, reports = attempt(assignment)
    assert code == FINISHED, reports[-1]
    return reports, reports[-1].adapter


def test_a_p_tuned_prompt_leaves_in_the_template_that_its_rows_wore(tmp_path, tiny):
    reports, adapter = finished(tmp_path / "job", tiny, PTuningSpec(template=TEMPLATE))
    effect = adapter_files.read_zip(adapter)
    words = Words(open_tokenizer(tiny, cache_dir=tmp_path / "cache"))
    assert effect.layout == parse(TEMPLATE).layout(words.within)
    assert effect.prompt.shape == (3, 32)
    losses = [report.train_loss for report in of_kind(reports, StepReport)]
    assert losses[-1] < losses[0]


def test_an_ensemble_leaves_as_many_prompts_as_learned(tmp_path, tiny):
    method = PromptTuningSpec(num_virtual_tokens=4, ensemble_size=3)
    reports, adapter = finished(tmp_path / "job", tiny, method)
    effect = adapter_files.read_zip(adapter)
    assert isinstance(effect, Ensemble)
    assert [member.prompt.shape for member in effect.members] == [(4, 32)] * 3
    assert not torch.equal(effect.members[0].prompt, effect.members[1].prompt)
    assert reports[-1].details["members"] == 3
    assert of_kind(reports, ValidationReport)
    with zipfile.ZipFile(adapter) as archive:
        files = json.loads(archive.read("graft.json"))["files"]
        assert {"ensemble.json", "member-2/adapter_model.safetensors"} <= set(files)
    (alone,) = {finished(tmp_path / "one", tiny, PromptTuningSpec(num_virtual_tokens=4))[1]}
    # Adam divides a gradient by its own size, so an entry whose gradient is all rounding moves as far as others.
    difference = (adapter_files.read_zip(alone).prompt - effect.members[0].prompt).abs().max()
    assert difference < 0.02 * PLAIN["learning_rate"] * 8


def test_a_prompt_starts_from_the_adapter_that_it_is_given(tmp_path, tiny):
    _, first = finished(tmp_path / "first", tiny, PromptTuningSpec(num_virtual_tokens=4))
    method = PromptTuningSpec(num_virtual_tokens=4, prompt_tuning_init="adapter", init_adapter="ft:first")
    reports, second = finished(tmp_path / "second", tiny, method, init_adapter=first)
    fresh, _ = finished(tmp_path / "fresh", tiny, PromptTuningSpec(num_virtual_tokens=4))
    assert isinstance(adapter_files.read_zip(second), SoftPrompt)
    assert of_kind(reports, StepReport)[0].train_loss < of_kind(fresh, StepReport)[0].train_loss


def test_a_prompt_whose_start_is_not_a_prompt_is_the_customers_to_change(tmp_path, tiny):
    reports, _ = attempt(make_assignment(tmp_path / "lora", tiny))[::-1]
    method = PromptTuningSpec(num_virtual_tokens=4, prompt_tuning_init="adapter", init_adapter="ft:lora")
    spec = TrainSpec(base_model="tiny", method=method, **PLAIN)
    wrong = {"spec": spec, "init_adapter": reports[-1].adapter}
    code, said = attempt(make_assignment(tmp_path / "job", tiny).model_copy(update=wrong))
    assert (code, said[-1].code) == (USER_ERROR, "invalid_method")
    assert "a prompt is expected" in said[-1].message


def test_adaloras_ranks_are_told_when_they_move(tmp_path, tiny):
    reports, _ = finished(tmp_path / "job", tiny, AdaLoraSpec(init_r=4, target_r=2, tinit=1, tfinal=2))
    told = [report.ranks for report in of_kind(reports, StepReport)]
    assert told[0]
    assert set(told[0].values()) == {4}
    moved = [ranks for ranks in told if ranks]
    assert 1 < len(moved) < len(told)
    assert sum(moved[-1].values()) == 2 * len(moved[-1])
