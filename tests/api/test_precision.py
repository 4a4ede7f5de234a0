"""On which engine a model is served: its adapter was trained on a base in 16 bits or in 4, and that one it gets."""

import pytest
from asking import ask
from serving import BASE, running


@pytest.fixture
def small_engine(service):
    with running(service, precision="nf4") as fake:
        yield fake


def models(service):
    """An NF4-trained adapter, its checkpoint, and one trained in 16 bits."""
    small = service.adapter("small", precision="nf4")["fine_tuned_model"]
    return {"small": small, "step": f"{small}:ckpt-step-1", "plain": service.adapter("plain")["fine_tuned_model"]}


def precisions(engine):
    return [spec.base_precision for spec in engine.requests]


def test_an_adapter_is_served_on_the_base_that_it_was_trained_on(service, engine, small_engine):
    made = models(service)
    for name in (made["small"], made["step"], f"{BASE}@nf4"):
        assert ask(service, model=name).json()["model"] == name
    assert (precisions(small_engine), precisions(engine)) == (["nf4"] * 3, [])
    for name in (made["plain"], BASE):
        assert ask(service, model=name).status_code == 200
    assert (precisions(small_engine), precisions(engine)) == (["nf4"] * 3, ["bf16"] * 2)


def test_a_request_may_choose_the_other_base(service, engine, small_engine):
    made = models(service)
    assert ask(service, model=made["small"], base_precision="bf16").status_code == 200
    assert ask(service, model=BASE, base_precision="nf4").status_code == 200
    assert (len(engine.requests), len(small_engine.requests)) == (1, 1)
    assert engine.requests[0].adapter is not None
    refused = ask(service, model=BASE, base_precision="int8")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "base_precision")


def test_plain_completions_choose_alike(service, engine, small_engine):
    body = {"model": f"{BASE}@nf4", "prompt": "hello", "max_tokens": 2}
    assert service.http.post("/v1/completions", json=body).status_code == 200
    assert service.http.post("/v1/completions", json=body | {"base_precision": "bf16"}).status_code == 200
    assert (len(small_engine.requests), len(engine.requests)) == (1, 1)


def test_without_an_engine_of_that_precision_the_answer_says_which_there_is(service, engine):
    answer = ask(service, model=f"{BASE}@nf4")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "precision_unavailable")
    assert "in nf4" in error["message"]
    assert "bf16" in error["message"]
    assert engine.requests == []


def test_the_base_in_4_bits_is_a_model_of_its_own_to_look_at_but_not_to_train(service):
    shown = service.http.get(f"/v1/models/{BASE}@nf4").json()
    assert (shown["id"], shown["base_precision"], shown["parent"]) == (f"{BASE}@nf4", "nf4", None)
    assert service.http.get(f"/v1/models/{BASE}@int8").status_code == 404
    assert service.job(model=f"{BASE}@nf4").json()["error"]["param"] == "model"


def test_lengths_are_told_by_an_engine_of_any_precision(service, small_engine):
    small_engine.too_long = [{"line": 1, "tokens": 9999}]
    assert service.job().status_code == 400
    assert len(small_engine.measures) == 1
