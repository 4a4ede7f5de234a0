"""POST /v1/fine_tuning/preview: what is asked of an engine, and what comes back."""

import json

import pytest
from serving import BASE

from core.specs.template import in_front, parse

ROWS = [{"prompt": "a", "completion": "b"}]
PAIR = {
    "input": {"messages": [{"role": "user", "content": "q"}]},
    "preferred_output": [{"role": "assistant", "content": "a"}],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def ask(service, **fields):
    return service.http.post("/v1/fine_tuning/preview", json={"model": BASE, **fields})


def test_a_file_is_shown_as_a_job_of_these_fields_would_read_it(service, engine):
    file = service.upload().json()
    answer = ask(
        service,
        training_file=file["id"],
        peft={"type": "p_tuning", "template": "{v:2} ask {input}{v:1}{target}"},
        training={"train_on": "last", "max_seq_length": 100},
        limit=2,
    )
    assert answer.status_code == 200, answer.text
    [asked] = engine.previews
    assert asked.template == parse("{v:2} ask {input}{v:1}{target}")
    assert (asked.train_on, asked.max_tokens, asked.limit, asked.rows) == ("last", 100, 2, None)
    shown = answer.json()
    assert (shown["object"], shown["model"], shown["valid"]) == ("fine_tuning.preview", BASE, True)
    assert (shown["virtual_tokens"], shown["prefix"], shown["max_seq_length"]) == (3, 0, 100)
    [row] = shown["rows"]
    assert row["trained_spans"] == [[1, 3]]
    assert [token["label"] for token in row["tokens"]] == [-100, 1, 2]
    assert [token["text"] for token in row["tokens"]] == ["oak", "elm", "ash"]


@pytest.mark.parametrize(
    ("peft", "template", "prefix"),
    [
        ({"type": "lora"}, None, 0),
        ({"type": "prompt_tuning", "num_virtual_tokens": 7}, in_front(7), 0),
        ({"type": "prefix_tuning", "num_virtual_tokens": 30}, None, 30),
    ],
)
def test_rows_of_the_request_are_shown_with_the_methods_own_tokens(service, engine, peft, template, prefix):
    shown = ask(service, rows=ROWS, peft=peft).json()
    [asked] = engine.previews
    assert (asked.rows, asked.template, asked.prefix_length) == (tuple(ROWS), template, prefix)
    assert (asked.max_tokens, asked.limit, asked.train_on) == (512 - prefix, 3, "assistant")
    assert (shown["virtual_tokens"], shown["prefix"]) == (template.num_virtual_tokens if template else 0, prefix)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, None, "invalid_value"),
        ({"rows": ROWS, "training_file": "file-x"}, None, "invalid_value"),
        ({"rows": []}, "rows", "invalid_value"),
        ({"rows": ROWS * 101}, "rows", "invalid_value"),
        ({"rows": ROWS, "limit": 33}, "limit", "invalid_value"),
        ({"rows": ROWS, "model": "other"}, "model", "model_not_found"),
        ({"training_file": "file-nowhere"}, "training_file", "file_not_found"),
        ({"rows": ROWS, "peft": {"type": "lora", "r": 0}}, "peft.r", "invalid_value"),
        (
            {"rows": ROWS, "peft": {"type": "prefix_tuning", "num_virtual_tokens": 512}},
            "peft.num_virtual_tokens",
            "no_room_for_rows",
        ),
    ],
)
def test_a_bad_request_names_its_field(service, fields, param, code):
    error = error_of(ask(service, **fields))
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.usefixtures("engine")
def test_a_strangers_file_is_as_if_it_were_not_there(service):
    theirs = service.stranger().post(
        "/v1/files", files={"file": ("t", json.dumps(ROWS[0]))}, data={"purpose": "fine-tune"}
    )
    error = error_of(ask(service, training_file=theirs.json()["id"]))
    assert (error["param"], error["code"]) == ("training_file", "file_not_found")


def test_without_an_engine_there_is_no_preview_and_a_retry_is_invited(service):
    answer = ask(service, rows=ROWS)
    assert error_of(answer, 503)["code"] == "engine_unavailable"
    assert answer.headers["retry-after"]


def test_what_an_engine_refuses_is_told_and_what_is_no_answer_is_not(service, engine):
    refusal = {"error": {"code": "invalid_request", "message": "give one", "param": "rows"}}
    engine.previewed = (400, refusal)
    assert error_of(ask(service, rows=ROWS))["param"] == "rows"
    engine.previewed = (200, {"rows": "nonsense"})
    assert error_of(ask(service, rows=ROWS), 503)["code"] == "engine_unavailable"


@pytest.mark.usefixtures("engine")
def test_preference_pairs_are_shown(service):
    file = service.upload(json.dumps(PAIR)).json()
    assert file["validation"]["format"] == "preference"
    assert ask(service, training_file=file["id"]).status_code == 200
