"""A field that would do nothing beside the others is refused, not taken and forgotten."""

import pytest
from pydantic import TypeAdapter

from core.specs.method import MethodSpec

METHODS = TypeAdapter(MethodSpec)
LSTM = {"type": "p_tuning", "encoder_reparameterization_type": "LSTM"}


@pytest.mark.parametrize(
    ("method", "idle"),
    [
        ({"type": "p_tuning", "encoder_dropout": 0.1}, "encoder_dropout"),
        ({"type": "p_tuning", "encoder_num_layers": 3}, "encoder_num_layers"),
        ({**LSTM, "encoder_num_layers": 1, "encoder_dropout": 0.1}, "encoder_dropout"),
        ({**LSTM, "encoder_num_layers": 3, "encoder_dropout": 0.1}, None),
        ({"type": "p_tuning", "encoder_num_layers": 2, "encoder_dropout": 0.0}, None),
        ({"type": "prefix_tuning", "parametrization": "kv", "encoder_hidden_size": 64}, "encoder_hidden_size"),
        ({"type": "prefix_tuning", "encoder_hidden_size": 64}, None),
        ({"type": "prefix_tuning", "fit_steps": 10}, "fit_steps"),
        ({"type": "prefix_tuning", "fit_steps": 10, "prefix_init": "text", "prefix_init_text": "be brief"}, None),
        ({"type": "lora", "r": 3}, None),
    ],
)
def test_what_does_nothing_is_known(method, idle):
    found = METHODS.validate_python(method).idle()
    assert (found and found[0]) == idle


def test_a_job_is_refused_for_it_and_told_what_it_needs(service):
    answer = service.job(peft={"type": "p_tuning", "encoder_dropout": 0.1})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "peft.encoder_dropout")
    assert "needs encoder_reparameterization_type 'LSTM' of two layers or more" in error["message"]
    taken = service.job(peft={"type": "p_tuning"})
    assert taken.status_code == 200, taken.text
