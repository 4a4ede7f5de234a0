"""Whole attempts that go on from an adapter's zip."""

from tiny_job import attempt, attempts, make_assignment, numbers, of_kind

from core.specs.assignment import FINISHED, USER_ERROR, StepReport


def test_a_job_goes_on_where_another_ended(tmp_path, tiny_entry):
    _, first = attempt(make_assignment(tmp_path / "first", tiny_entry))
    second = make_assignment(tmp_path / "second", tiny_entry).model_copy(update={"continue_from": first[-1].adapter})
    code, reports = attempt(second)
    assert code == FINISHED
    begun, ended = of_kind(first, StepReport)[0].train_loss, of_kind(first, StepReport)[-1].train_loss
    assert of_kind(reports, StepReport)[0].train_loss < (begun + ended) / 2
    assert reports[-1].metrics["valid_loss"] != first[-1].metrics["valid_loss"]


def test_stopped_it_goes_on_from_its_checkpoint_and_not_from_the_adapter(tmp_path, tiny_entry):
    _, first = attempt(make_assignment(tmp_path / "first", tiny_entry))
    found = []
    for name, stops in (("whole", [{}]), ("stopped", [{"drain_at": 8}, {}])):
        said = []
        for epoch, stop in enumerate(stops, start=1):
            plain = make_assignment(tmp_path / name, tiny_entry, lease_epoch=epoch)
            said += attempt(plain.model_copy(update={"continue_from": first[-1].adapter}), **stop)[1]
        found.append(numbers(said))
    assert found[0] == found[1]
    assert found[0] != numbers(attempts(tmp_path / "fresh", tiny_entry, []))  # the control


def test_an_adapter_of_other_ranks_is_the_customers_to_change(tmp_path, tiny_entry):
    _, first = attempt(make_assignment(tmp_path / "first", tiny_entry, n_epochs=1))
    other = make_assignment(tmp_path / "second", tiny_entry, method={"r": 2})
    code, reports = attempt(other.model_copy(update={"continue_from": first[-1].adapter}))
    assert (code, reports[-1].code) == (USER_ERROR, "invalid_method")
    assert "rank 4 in the adapter and 2 here" in reports[-1].message
