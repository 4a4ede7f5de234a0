"""Jobs that learn from pairs, as OpenAI's clients ask for them."""

import json

import pytest
from serving import CHAT_LINE

from core.records.tables import Job

PAIR = json.dumps(
    {
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    }
)


def dpo(**hyperparameters):
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


@pytest.fixture
def pairs(service):
    return service.upload((PAIR + "\n") * 20).json()["id"]


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def spec_of(service, answer):
    assert answer.status_code == 200, answer.text
    with service.database.session() as session:
        return session.get_one(Job, answer.json()["id"]).spec


def test_a_job_that_learns_from_pairs_answers_in_openais_shape(service, pairs):
    said = dpo(n_epochs=2, batch_size=4, learning_rate_multiplier=2.0, beta=0.3)
    job = service.job(training_file=pairs, validation_file=pairs, method=said).json()
    assert job["method"] == said
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2.0}
    again = service.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert again["method"] == said
    assert "dpo" not in again["training"]


@pytest.mark.parametrize("method", [{"type": "dpo"}, {"type": "dpo", "dpo": {}}, dpo(), dpo(beta="auto")])
def test_a_beta_that_is_not_said_is_a_tenth_and_the_rate_is_dpos_own(service, pairs, method):
    job = service.job(training_file=pairs, method=method).json()
    assert job["method"]["dpo"]["hyperparameters"]["beta"] == 0.1
    supervised = service.job().json()["training"]["learning_rate"]
    assert 0 < job["training"]["learning_rate"] < supervised


def test_peft_and_training_are_written_as_for_every_job(service, pairs):
    both = {"type": "dpo", "dpo": {"peft": {"type": "prompt_tuning", "num_virtual_tokens": 7}}}
    for fields in ({"method": both}, {"method": {"type": "dpo"}, "peft": both["dpo"]["peft"]}):
        job = service.job(training_file=pairs, training={"learning_rate": 3e-3}, **fields).json()
        assert (job["peft"]["type"], job["peft"]["num_virtual_tokens"]) == ("prompt_tuning", 7)
        assert (job["training"]["learning_rate"], job["method"]["type"]) == (3e-3, "dpo")
    error = error_of(service.job(training_file=pairs, method=both, peft={"r": 4}))
    assert (error["param"], error["code"]) == ("method.dpo.peft", "conflicting_parameters")


def test_the_old_places_of_hyperparameters_agree_or_are_refused(service, pairs):
    answer = service.job(training_file=pairs, method=dpo(n_epochs=2, beta=0.2), hyperparameters={"n_epochs": 2})
    assert answer.json()["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    error = error_of(service.job(training_file=pairs, method=dpo(n_epochs=2), hyperparameters={"n_epochs": 3}))
    assert (error["param"], error["code"]) == ("method.dpo.hyperparameters", "conflicting_parameters")


def test_files_and_method_must_fit_each_other(service, pairs):
    chats = service.upload(CHAT_LINE * 3).json()["id"]
    for files, method, words in (
        ({"training_file": chats}, dpo(), "format chat"),
        ({"training_file": pairs, "validation_file": chats}, dpo(), "format chat"),
        ({"training_file": pairs}, None, "only dpo learns"),
        ({"training_file": chats, "validation_file": pairs}, {"type": "lora"}, "only dpo learns"),
    ):
        error = error_of(service.job(**files, **({"method": method} if method else {})))
        assert (error["param"], error["code"]) == (list(files)[-1], "unsupported_format")
        assert words in error["message"]
    assert service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize("beta", [0, -1, 11, "much", None])
def test_a_beta_out_of_bounds_is_refused_by_its_field(service, pairs, beta):
    error = error_of(service.job(training_file=pairs, method=dpo(beta=beta)))
    assert error["param"].startswith("method.dpo.hyperparameters.beta")


def test_a_section_of_another_type_is_refused(service, pairs):
    section = {"hyperparameters": {}}
    for method in ({"type": "dpo", "supervised": section}, {"type": "supervised", "dpo": section}):
        assert error_of(service.job(training_file=pairs, method=method))["param"] == "method"


def test_it_goes_on_from_a_model_by_the_method_that_made_it(service, pairs):
    name = service.adapter(peft={"type": "lora", "r": 3})["fine_tuned_model"]
    spec = spec_of(service, service.job(training_file=pairs, continue_from=name, method=dpo(beta=0.2)))
    assert (spec["continue_from"], spec["method"]["r"], spec["dpo"]) == (name, 3, {"beta": 0.2})


def test_rows_of_pairs_are_measured_too(service, pairs, engine):
    engine.too_long = [{"line": 3, "tokens": 700}]
    error = error_of(service.job(training_file=pairs, method=dpo()))
    assert [detail["line"] for detail in error["details"]] == [3]
