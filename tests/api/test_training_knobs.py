"""The further knobs of a job: what is resolved, and what is refused by its field."""

import pytest


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.usefixtures("engine")
def test_early_stopping_is_echoed_with_what_it_leaves_unsaid(service):
    validation = service.upload().json()["id"]
    answer = service.job(validation_file=validation, training={"early_stopping": {"patience": 3}, "serve": "last"})
    assert answer.status_code == 200, answer.text
    said = answer.json()["training"]
    assert (said["early_stopping"], said["serve"]) == ({"patience": 3, "min_delta": 0.0}, "last")


def test_early_stopping_without_a_validation_file_is_refused(service):
    error = error_of(service.job(training={"early_stopping": {"patience": 3}}))
    assert (error["param"], error["code"]) == ("training.early_stopping", "validation_file_required")


@pytest.mark.parametrize("stopping", [{}, {"patience": 0}, {"patience": 2, "min_delta": -1}, {"patience": 2, "x": 1}])
def test_early_stopping_out_of_bounds_is_refused(service, stopping):
    assert "early_stopping" in error_of(service.job(training={"early_stopping": stopping}))["param"]
