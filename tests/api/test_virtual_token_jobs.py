"""Jobs of methods with virtual tokens: their rows are measured with them."""

import pytest
from serving import BASE, CHAT_LINE

from core.records.tables import Job
from core.specs.template import in_front, parse


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("peft", "template", "room"),
    [
        ({"type": "lora"}, None, 512),
        ({"type": "prompt_tuning", "num_virtual_tokens": 7}, in_front(7), 512),
        (
            {"type": "p_tuning", "template": "{v:2} ask {input}{v:1}{{}}{target}"},
            parse("{v:2} ask {input}{v:1}{{}}{target}"),
            512,
        ),
        ({"type": "prefix_tuning", "num_virtual_tokens": 30}, None, 482),
    ],
)
def test_rows_are_measured_in_their_methods_template_and_beside_its_prefix(service, engine, peft, template, room):
    answer = service.job(peft=peft)
    assert answer.status_code == 200, answer.text
    assert (engine.measures[0].template, engine.measures[0].max_tokens) == (template, room)
    assert answer.json()["training"]["max_seq_length"] == room


def test_a_row_too_long_with_its_virtual_tokens_is_refused_before_training(service, engine):
    engine.too_long = [{"line": 2, "tokens": 520}]
    error = error_of(service.job(peft={"type": "prompt_tuning", "num_virtual_tokens": 100}))
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")


@pytest.mark.usefixtures("engine")
def test_a_prefix_that_leaves_no_room_for_rows_is_refused(service):
    error = error_of(service.job(peft={"type": "prefix_tuning", "num_virtual_tokens": 512}))
    assert (error["param"], error["code"]) == ("peft.num_virtual_tokens", "no_room_for_rows")


PROMPT = {"details": {"peft_type": "PROMPT_TUNING"}}


def start(name):
    return {"type": "prompt_tuning", "prompt_tuning_init": "adapter", "init_adapter": name}


def test_a_prompt_starts_from_the_projects_own_prompt_by_name_or_id(service):
    name = service.adapter(**PROMPT)["fine_tuned_model"]
    adapter = service.http.get(f"/v1/adapters/{name}").json()
    for one in (name, adapter["id"]):
        answer = service.job(peft=start(one))
        assert answer.status_code == 200, answer.text
        assert "init_adapter_sha256" not in answer.json()["training"]
        with service.database.session() as session:
            job = session.get_one(Job, answer.json()["id"])
        assert job.spec["init_adapter_sha256"] == adapter["sha256"]


def test_what_a_prompt_cannot_start_from_is_refused_by_its_field(service):
    lora = service.adapter()["fine_tuned_model"]
    prefix = service.adapter("prefix", details={"peft_type": "PREFIX_TUNING"})["fine_tuned_model"]
    several = service.adapter("both", details={"peft_type": "PROMPT_TUNING", "members": 2})["fine_tuned_model"]
    for name, code in (
        (lora, "init_adapter_unusable"),
        (prefix, "init_adapter_unusable"),
        (several, "init_adapter_unusable"),
        ("ft:nobody", "init_adapter_not_found"),
    ):
        error = error_of(service.job(peft=start(name)))
        assert (error["param"], error["code"]) == ("peft.init_adapter", code), name


def test_a_strangers_prompt_is_as_if_it_were_not_there(service):
    name = service.adapter(**PROMPT)["fine_tuned_model"]
    stranger = service.stranger()
    file = stranger.post("/v1/files", files={"file": ("t.jsonl", CHAT_LINE * 3)}, data={"purpose": "fine-tune"}).json()
    body = {"model": BASE, "training_file": file["id"], "peft": start(name)}
    error = error_of(stranger.post("/v1/fine_tuning/jobs", json=body))
    assert error["code"] == "init_adapter_not_found"
