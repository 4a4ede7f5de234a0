"""Jobs whose methods ask the open base model what it makes of words."""

import pytest
from tiny_job import attempt, make_assignment, numbers, sha256

from core import peft_files
from core.specs.assignment import FINISHED, USER_ERROR, FinishedReport
from core.specs.method import PrefixTuningSpec
from core.specs.training import TrainSpec

WORDS = {"num_virtual_tokens": 4, "prefix_init": "text", "prefix_init_text": "square"}


def assignment_of(folder, base, lease_epoch=1, **method):
    plain = make_assignment(folder, base, lease_epoch=lease_epoch)
    spec = plain.spec.model_dump() | {"method": PrefixTuningSpec(**method).model_dump()}
    return plain.model_copy(update={"spec": TrainSpec.model_validate(spec)})


@pytest.mark.parametrize("parametrization", ["kv", "mlp", "hidden"])
def test_a_prefix_that_starts_from_words_trains_and_is_published(parametrization, tmp_path, tiny_entry):
    assignment = assignment_of(
        tmp_path, tiny_entry, parametrization=parametrization, encoder_hidden_size=16, fit_steps=20, **WORDS
    )
    code, reports = attempt(assignment)
    assert code == FINISHED
    finished = reports[-1]
    assert isinstance(finished, FinishedReport)
    assert finished.details["peft_type"] == "PREFIX_TUNING"
    effect = peft_files.read_zip(finished.adapter)
    assert effect.keys.shape == effect.values.shape == (2, 4, 2, 8)
    assert effect.keys.abs().max() > 0


def test_stopped_and_taken_up_again_it_ends_with_the_same_bytes(tmp_path, tiny_entry):
    whole = attempt(assignment_of(tmp_path / "whole", tiny_entry, parametrization="hidden", **WORDS))[1]
    folder = tmp_path / "stopped"
    said = []
    for lease_epoch, stop in enumerate([{"drain_at": 5}, {"kill_at": 4}, {}], start=1):
        made = assignment_of(folder, tiny_entry, lease_epoch, parametrization="hidden", **WORDS)
        said += attempt(made, **stop)[1]
    assert numbers(said) == numbers(whole)
    assert sha256(said[-1].adapter) == sha256(whole[-1].adapter)


def test_words_that_are_none_to_the_base_are_the_customers_to_change(tmp_path, tiny_entry, monkeypatch):
    monkeypatch.setattr("core.methods.prefix_tuning.words_of", _no_word)
    code, reports = attempt(assignment_of(tmp_path, tiny_entry, **WORDS))
    assert (code, reports[-1].code, reports[-1].param) == (USER_ERROR, "invalid_method", "method")


def _no_word(*_):
    raise ValueError("it is no word")
