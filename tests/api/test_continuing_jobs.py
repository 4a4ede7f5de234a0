"""Jobs that go on from a model of the project."""

import pytest

from core.records.tables import Job


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def spec_of(service, answer):
    assert answer.status_code == 200, answer.text
    with service.database.session() as session:
        return session.get_one(Job, answer.json()["id"]).spec


def test_it_goes_on_from_a_model_or_a_checkpoint_by_name_or_id(service):
    name = service.adapter()["fine_tuned_model"]
    adapter = service.http.get(f"/v1/adapters/{name}").json()
    spec = spec_of(service, service.job(continue_from=f"{name}:ckpt-step-1"))
    assert spec["continue_from"] == f"{name}:ckpt-step-1"
    for one in (name, adapter["id"]):
        answer = service.job(continue_from=one)
        spec = spec_of(service, answer)
        assert (spec["continue_from"], spec["continue_from_sha256"]) == (name, adapter["sha256"])
        assert answer.json()["continue_from"] == name
        assert "continue_from_sha256" not in answer.json()["training"]


def test_without_a_method_it_is_the_one_that_made_the_model(service):
    name = service.adapter(peft={"type": "lora", "r": 3})["fine_tuned_model"]
    assert spec_of(service, service.job(continue_from=name))["method"]["r"] == 3
    said = spec_of(service, service.job(continue_from=name, peft={"type": "lora", "r": 5}))
    assert said["method"]["r"] == 5


@pytest.mark.parametrize(
    ("peft", "code"),
    [
        ({"type": "adalora"}, "cannot_continue"),
        ({"type": "prompt_tuning"}, "cannot_continue"),
        ({"type": "prefix_tuning", "parametrization": "kv"}, "cannot_continue"),
        ({"type": "lora", "init_lora_weights": "pissa"}, "cannot_continue"),
        ({"type": "qlora"}, "other_base_precision"),
    ],
)
def test_a_method_that_cannot_go_on_from_it_is_refused(service, peft, code):
    error = error_of(service.job(continue_from=service.adapter()["fine_tuned_model"], peft=peft))
    assert (error["param"], error["code"]) == ("continue_from", code)


def test_what_is_not_there_is_refused(service):
    error = error_of(service.job(continue_from="ft:nobody"))
    assert (error["param"], error["code"]) == ("continue_from", "model_not_found")
