"""A job on an NF4 base: what it says of its base and its optimiser, and what serving it in 16 bits would change."""

import json

import pytest
from tiny_job import attempt, attempts, make_assignment, members, of_kind, sha256

from core.base.load import open_base
from core.methods import Lora
from core.model import RoutedModel
from core.specs.assignment import FINISHED, StepReport, WarningReport
from worker import shift
from worker.reading import corpus_of

NF4 = {"method": {"base_precision": "nf4"}, "optimizer": "paged_adamw_32bit"}


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_entry):
    """The reports of a whole run on NF4, and its assignment."""
    assignment = make_assignment(tmp_path_factory.mktemp("nf4"), tiny_entry, **NF4)
    code, reports = attempt(assignment)
    assert code == FINISHED
    return reports, assignment


def test_its_details_and_its_file_name_the_quantised_base(done):
    reports, assignment = done
    finished = reports[-1]
    origin = json.loads(members(finished.adapter)["graft.json"])
    base = opened(assignment, "nf4")

    assert finished.details["base_precision"] == "nf4"
    assert finished.details["base_quantisation"] == base.quantisation
    assert base.quantisation["compute_dtype"] == "fp32"
    assert {name: origin[name] for name in finished.details} == finished.details


def test_it_says_once_that_nothing_is_paged_on_a_cpu(done, tmp_path, tiny_entry):
    reports, _ = done
    [warning] = of_kind(reports, WarningReport)
    assert (warning.code, warning.step) == ("optimizer_unpaged", 0)
    assert "paged_adamw_32bit" in warning.message
    plain = make_assignment(tmp_path / "plain", tiny_entry, method=NF4["method"])
    assert of_kind(attempt(plain)[1], WarningReport) == []


def test_it_learns_and_the_wider_base_goes_another_way(done, tmp_path, tiny_entry):
    losses = [report.train_loss for report in of_kind(done[0], StepReport)]
    assert losses[-1] < losses[0]
    _, plain = attempt(make_assignment(tmp_path / "plain", tiny_entry))
    assert losses[0] != of_kind(plain, StepReport)[0].train_loss


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_stopped_and_taken_up_again_it_ends_with_the_same_bytes(tmp_path, tiny_entry, optimizer):
    how = {"method": NF4["method"] | {"r": 128}, "optimizer": optimizer, "n_epochs": 1}
    _, whole = attempt(make_assignment(tmp_path / "whole", tiny_entry, **how))
    stopped = attempts(tmp_path / "stopped", tiny_entry, [{"drain_at": 6}], **how)
    assert sha256(stopped[-1].adapter) == sha256(whole[-1].adapter)


def test_it_is_measured_what_serving_on_16_bits_changes(done):
    found = done[0][-1].details["shift_on_16bit"]
    assert found["rows"] == 8
    assert found["tokens"] > 8
    assert 0 < found["mean_distance"] < found["greatest_distance"]
    assert 0 <= found["same_argmax"] <= 1


def opened(assignment, precision):
    how = {"cache_dir": assignment.cache_dir, "device": "cpu", "precision": "fp32"}
    return open_base(assignment.base, base_precision=precision, **how)


@pytest.fixture
def bench(done):
    """What a shift is measured with: an untrained method, rows, the two bases and the assignment."""
    _, assignment = done
    small, wide = opened(assignment, "nf4"), opened(assignment, "bf16")
    context = small.facts.context
    corpus = corpus_of(
        assignment.training_file, small.tokenizer, assignment.spec, context=context, param="training_file"
    )
    return Lora(assignment.spec.method, small.facts), corpus, small, wide, assignment


def test_a_model_compared_with_itself_has_not_moved(bench):
    method, corpus, small, wide, _ = bench
    one, other = RoutedModel(small.model), RoutedModel(wide.model)
    still = shift.compare(method, corpus, one, one)
    assert (still["greatest_distance"], still["mean_distance"], still["same_argmax"]) == (0.0, 0.0, 1.0)
    assert shift.compare(method, corpus, one, other)["greatest_distance"] > 0.0


def test_a_base_too_large_to_open_twice_is_not_and_the_reason_is_kept(bench, monkeypatch):
    method, corpus, small, wide, assignment = bench
    assert small.dense_bytes == wide.dense_bytes == 4 * sum(p.numel() for p in wide.model.parameters())
    monkeypatch.setattr(shift, "MOST_BYTES", 1000)
    found = shift.measured_shift(method, corpus, small, RoutedModel(small.model), assignment)
    assert "1000 are the most" in found["shift_on_16bit"]["skipped"]
    assert shift.measured_shift(method, corpus, wide, RoutedModel(wide.model), assignment) == {}
