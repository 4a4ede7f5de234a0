"""Jobs of methods with virtual tokens: their rows are measured with them."""

import pytest

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
