"""The default base model, real weights and all, as `make run` starts it."""

import pytest
from one_machine import Service, colours, finish, upload

pytestmark = [pytest.mark.journey, pytest.mark.smollm2]
BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("smollm2") / "data")
    service.start()
    yield service
    service.end()


def ask(client, model, question):
    messages = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
    return reply.choices[0].message.content


def test_the_base_speaks_and_an_adapter_learns_in_a_minute(service):
    client = service.client()
    assert "Paris" in ask(client, BASE, "What is the capital of France?")
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, colours(16)),
        hyperparameters={"n_epochs": 6, "batch_size": 8},
        extra_body={"peft": {"type": "lora", "r": 8}, "training": {"learning_rate": 2e-3}},
    )
    done = finish(client, job.id, within_s=240.0)
    assert done.status == "succeeded", done.error
    assert ask(client, done.fine_tuned_model, "item 3") in {"red", "blue"}
    assert ask(client, BASE, "item 3") not in {"red", "blue"}
    service.stop()
