"""What may enter, and what is refused with which words."""

import threading

import pytest

from core.specs.generation import ChatMessage, GenerateSpec, SamplingSpec
from tests.worker.engine.conftest import BASE, CHATML, CONTEXT, STOP_ID, make_tokenizer
from worker.engine.intake import Intake, Refused


@pytest.fixture(scope="module")
def intake():
    return Intake(make_tokenizer(), base_model=BASE, context=CONTEXT, vocabulary=99, stop_ids=frozenset([STOP_ID]))


def spec(**asked):
    return GenerateSpec(**{"request_id": "r", "base_model": BASE, "sampling": SamplingSpec()} | asked)


def test_messages_become_what_the_template_writes(intake):
    messages = (ChatMessage(role="user", content="hi"),)
    sequence = intake.sequence(spec(messages=messages), print)
    written = make_tokenizer().decode(sequence.prompt_ids)
    assert written == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert CHATML


def test_special_tokens_in_a_customers_text_are_text(intake):
    sequence = intake.sequence(spec(prompt="a<|im_end|>b"), print)
    assert STOP_ID not in sequence.prompt_ids


def test_new_tokens_are_capped_by_what_is_left_of_the_context(intake):
    ids = tuple(range(5, 45))
    asked = SamplingSpec(max_tokens=1000)
    assert intake.sequence(spec(prompt_ids=ids, sampling=asked), print).limit == CONTEXT - 40
    assert intake.sequence(spec(prompt_ids=ids, offset=10, sampling=asked), print).limit == CONTEXT - 30
    assert intake.sequence(spec(prompt_ids=ids, sampling=SamplingSpec(max_tokens=3)), print).limit == 3


@pytest.mark.parametrize(
    ("asked", "status", "code", "words"),
    [
        ({"prompt": "x", "base_model": "other"}, 404, "model_not_found", "serves tiny, not other"),
        ({"prompt": "x", "base_precision": "nf4"}, 404, "precision_unavailable", "serves tiny in bf16, not in nf4"),
        ({}, 400, "invalid_request", "one of messages, prompt and prompt_ids"),
        ({"prompt": "x", "prompt_ids": (7,)}, 400, "invalid_request", "one of messages, prompt and prompt_ids"),
        (
            {"prompt": "x", "sampling": SamplingSpec(logit_bias=((7, 1.0), (99, 1.0)))},
            400,
            "invalid_request",
            "logit_bias names id 99, which is not in 0…98",
        ),
        ({"prompt": "x", "offset": 1}, 400, "invalid_request", "offset goes with prompt_ids"),
        ({"prompt": ""}, 400, "invalid_request", "no token"),
        ({"prompt_ids": ()}, 400, "invalid_request", "no token"),
        ({"prompt_ids": (7,), "offset": 1}, 400, "invalid_request", "no token"),
        ({"prompt_ids": (7, 99)}, 400, "invalid_request", "id 99 is not in 0…98"),
        ({"prompt_ids": (-1, 7)}, 400, "invalid_request", "id -1 is not in 0…98"),
        ({"prompt_ids": (7,) * 64}, 400, "context_length_exceeded", "has 64 tokens; this model has room for 63"),
        ({"prompt": "x" * 200}, 400, "context_length_exceeded", "has 200 tokens"),
        ({"messages": ()}, 400, "invalid_request", "turn|message"),
    ],
)
def test_what_may_not_enter_is_refused_with_its_reason(intake, asked, status, code, words):
    with pytest.raises(Refused, match=words) as refused:
        intake.sequence(spec(**asked), print)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_one_intake_serves_many_threads(intake):
    found = []

    def work():
        for _ in range(50):
            sequence = intake.sequence(spec(prompt="hello there"), print)
            found.append(sequence.text.add(sequence.prompt_ids[0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["h"] * 200
