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


@pytest.mark.usefixtures("engine")
def test_a_searched_rate_is_echoed_with_what_will_be_tried(service):
    answer = service.job(training={"learning_rate": "search"}, hyperparameters={"learning_rate_multiplier": 2})
    assert answer.status_code == 200, answer.text
    said = answer.json()["training"]
    search = said["rate_search"]
    assert (len(search["rates"]), search["rates"][3], search["found"]) == (7, said["learning_rate"], None)
    assert said["learning_rate"] == 1e-3
    plain = service.job(training={"learning_rate": "auto"}).json()["training"]
    assert (plain["learning_rate"], plain["rate_search"]) == (5e-4, None)


@pytest.mark.parametrize("rate", ["searched", "", 0, -1, 11])
def test_a_rate_that_is_none_is_refused(service, rate):
    assert "learning_rate" in error_of(service.job(training={"learning_rate": rate}))["param"]
