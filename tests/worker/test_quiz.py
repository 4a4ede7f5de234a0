"""What validations report beside their loss: samples for all files, accuracy and macro-F1 where answers are labels."""

import json

import pytest
from tiny_job import attempt, make_assignment, numbers, of_kind

from core.data.labels import macro_f1
from core.specs.assignment import FINISHED, PhaseReport, Sample, SamplesReport, ValidationReport
from core.specs.method import PrefixTuningSpec, PromptTuningSpec
from core.specs.training import TrainSpec
from worker import quiz, sign_of_life
from worker.progress import samples_event


def write_labels(path, count):
    """Even and odd, told by the last digit."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n}"},
                {"role": "assistant", "content": "odd" if n % 2 else "even"},
            ]
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def of_labels(folder, base, **changes):
    assignment = make_assignment(folder, base, n_epochs=8, eval_steps=None, **changes)
    write_labels(assignment.training_file, 20)
    write_labels(assignment.validation_file, 8)
    return assignment


def test_labels_are_told_apart_by_accuracy_and_macro_f1(tmp_path, tiny_entry):
    code, reports = attempt(of_labels(tmp_path, tiny_entry))
    assert code == FINISHED
    first, *_, last = of_kind(reports, ValidationReport)
    assert (first.valid_accuracy, first.valid_macro_f1) != (None, None)
    for report in of_kind(reports, ValidationReport):
        assert report.valid_accuracy == report.valid_exact_match  # what is greedy and what is teacher-forced agree
    assert last.valid_accuracy > first.valid_accuracy or last.valid_accuracy == 1.0
    samples = of_kind(reports, SamplesReport)[-1].samples
    assert [sample.expected for sample in samples] == ["even<|im_end|>", "odd<|im_end|>", "even<|im_end|>"]
    assert samples[1].prompt == "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    assert reports[-1].metrics["valid_macro_f1"] is not None


def write_classes(path, count):
    """A hundred and twenty classes, of which all rows of one stand together, as files often are sorted."""
    rows = [{"text": f"{n}?", "label": f"class {n * 120 // count}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_of_many_classes_sorted_by_class_all_are_asked(tmp_path, tiny_entry, monkeypatch):
    asked = []
    monkeypatch.setattr(sign_of_life, "SIGN_OF_LIFE_S", 0.0)
    monkeypatch.setattr(quiz, "macro_f1", lambda expected, *rest: asked.append(expected) or macro_f1(expected, *rest))
    assignment = make_assignment(tmp_path, tiny_entry, n_epochs=1, eval_steps=None)
    write_classes(assignment.training_file, 6)
    write_classes(assignment.validation_file, 300)
    code, reports = attempt(assignment)
    assert code == FINISHED
    assert {report.valid_accuracy is None for report in of_kind(reports, ValidationReport)} == {False}
    assert len(asked[0]) == 240
    assert len(set(asked[0])) == 120
    # Of each answer it is said that it is being worked at: a supervisor would take long silence for a hang.
    assert sum(report.phase == "evaluating" for report in of_kind(reports, PhaseReport)) > 240
    (said,) = of_kind(reports, SamplesReport)
    assert {sample.expected for sample in said.samples} == {" class 0<|im_end|>"}


def test_a_file_of_many_answers_has_samples_and_no_macro_f1(tmp_path, tiny_entry):
    _, reports = attempt(make_assignment(tmp_path, tiny_entry, eval_samples=2))
    assert all(report.valid_macro_f1 is None for report in of_kind(reports, ValidationReport))
    assert [len(report.samples) for report in of_kind(reports, SamplesReport)] == [2, 2, 2]


def test_who_wants_no_samples_gets_none(tmp_path, tiny_entry):
    _, reports = attempt(make_assignment(tmp_path, tiny_entry, eval_samples=0))
    assert of_kind(reports, ValidationReport)
    assert not of_kind(reports, SamplesReport)


@pytest.mark.parametrize(
    "method", [PrefixTuningSpec(num_virtual_tokens=3), PromptTuningSpec(num_virtual_tokens=3, ensemble_size=2)]
)
def test_rows_with_virtual_tokens_are_answered_too(tmp_path, tiny_entry, method):
    plain = of_labels(tmp_path, tiny_entry)
    spec = TrainSpec.model_validate(plain.spec.model_dump() | {"method": method.model_dump(), "n_epochs": 1})
    code, reports = attempt(plain.model_copy(update={"spec": spec}))
    assert code == FINISHED
    assert of_kind(reports, SamplesReport)[0].samples[0].expected == "even<|im_end|>"


def test_asking_changes_nothing_that_is_learned(tmp_path, tiny_entry):
    said = [attempt(make_assignment(tmp_path / str(n), tiny_entry, eval_samples=n))[1] for n in (0, 3)]
    left, right = (numbers(reports) for reports in said)
    assert left == right


def test_samples_are_an_event_of_its_step():
    samples = (Sample(prompt="1", expected="odd", said="odd"), Sample(prompt="2", expected="even", said="odd"))
    event = samples_event(SamplesReport(step=4, samples=samples))
    assert (event.kind, event.step) == ("samples", 4)
    assert event.message == "Step 4: 1 of 2 samples answered as expected"
    assert event.data["samples"][1] == {"prompt": "2", "expected": "even", "said": "odd"}
