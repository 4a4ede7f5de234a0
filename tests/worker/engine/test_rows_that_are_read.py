"""Rows that are only read: embeddings and likelihoods, against stock transformers and in company."""

import base64
import itertools

import numpy as np
import pytest
import torch

from tests.worker.engine.conftest import make_tokenizer
from worker.engine import forward as forward_module

PROMPTS = ["a", "Good morning", "hello there, how are you today?", "b", "cc", "?"]


def vector(answer):
    (frame,) = answer.frames
    return np.frombuffer(base64.b64decode(frame.embedding), "<f4")


def logprobs(answer):
    (frame,) = answer.frames
    return [one.logprob for one in frame.likelihoods]


def stock_logprobs(base, ids):
    """Teacher-forced, by a plain Hugging Face model: of each token but the first."""
    with torch.no_grad():
        found = base(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(found[t - 1, ids[t]]) for t in range(1, len(ids))]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_embedding_is_the_stock_model_s_mean_hidden_state_of_length_one(new_kitchen, new_base, family):
    kitchen, base = new_kitchen(family=family), new_base(family)
    for prompt in PROMPTS:
        found = vector(kitchen.tell(prompt=prompt, read={"what": "embedding"}))
        with torch.no_grad():
            hidden = base.base_model(torch.tensor([make_tokenizer().encode(prompt)])).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        assert np.abs(found - wanted).max() < 1e-5
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_an_embedding_alone_equals_that_in_company_and_in_chunks(new_kitchen):
    kitchen = new_kitchen(token_budget=8)
    worn = [None, kitchen.publish(r=4), kitchen.publish(seed=3, r=8)]
    asked = [{"prompt": p, "adapter": worn[i % 3], "read": {"what": "embedding"}} for i, p in enumerate(PROMPTS)]
    alone = [vector(kitchen.tell(**one)) for one in asked]
    talker = kitchen.ask(prompt="talk", max_tokens=20)
    together = [kitchen.ask(**one) for one in asked]
    kitchen.run()
    assert talker.ids == kitchen.tell(prompt="talk", max_tokens=20).ids
    for one, other in zip(together, alone, strict=True):
        assert np.abs(vector(one) - other).max() < 1e-5
    # Negative control: the adapter and the prompt both show.
    same = [vector(kitchen.tell(prompt="same", adapter=a, read={"what": "embedding"})) for a in worn]
    for one, other in itertools.combinations(same + alone, 2):
        assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_s_likelihood_is_the_stock_model_s_teacher_forced_one(new_kitchen, new_base, family):
    kitchen, base = new_kitchen(family=family, token_budget=8), new_base(family)
    asked = [(prompt, label) for prompt in PROMPTS for label in ("yes", "no", "perhaps not")]
    answers = [kitchen.ask(prompt=p, read={"what": "likelihood", "answer": a}) for p, a in asked[:8]]
    kitchen.run()
    for (prompt, label), answer in zip(asked, answers, strict=False):
        ids = [*make_tokenizer().encode(prompt), *make_tokenizer().encode(label)]
        assert answer.frames[0].prompt_ids == tuple(ids)
        wanted = stock_logprobs(base, ids)[-len(label) :]
        assert logprobs(answer) == pytest.approx(wanted, abs=1e-5)
        # Negative control: one place further on it is another number.
        assert logprobs(answer) != pytest.approx(stock_logprobs(base, ids)[-len(label) - 1 : -1], abs=1e-3)


def test_a_prompt_s_own_likelihoods_begin_with_none(kitchen, new_base):
    ids = make_tokenizer().encode("hello there")
    answer = kitchen.tell(prompt="hello there", read={"what": "likelihood"}, top_logprobs=2)
    first, *rest = logprobs(answer)
    assert first is None
    assert rest == pytest.approx(stock_logprobs(new_base(), ids), abs=1e-5)
    assert [len(one.top) for one in answer.frames[0].likelihoods] == [0] + [2] * len(rest)
    assert [one.id for one in answer.frames[0].likelihoods] == ids


def test_an_answer_is_as_likely_as_the_end_of_the_prompt_that_holds_it(kitchen, new_base):
    long = "one two three four five six"
    whole = kitchen.tell(prompt=long, read={"what": "likelihood"})
    tail = kitchen.tell(prompt=long[:13], read={"what": "likelihood", "answer": long[13:]})
    assert logprobs(tail) == pytest.approx(logprobs(whole)[13:], abs=1e-5)
    assert logprobs(whole)[1:] == pytest.approx(stock_logprobs(new_base(), make_tokenizer().encode(long)), abs=1e-5)


def test_a_row_that_is_read_again_after_a_failed_step_counts_once(kitchen, monkeypatch):
    asked = {"prompt": "hello there", "read": {"what": "likelihood"}}
    wanted = kitchen.tell(**asked).frames[0]
    choose, calls = forward_module._choose, []

    def fail_once(logits, requests):
        calls.append(len(requests))
        if len(calls) == 1:
            raise RuntimeError("after all was read")
        return choose(logits, requests)

    monkeypatch.setattr(forward_module, "_choose", fail_once)
    kitchen.ask(prompt="one", max_tokens=4)
    answer = kitchen.ask(**asked)
    kitchen.run()
    assert len(calls) > 1
    assert logprobs(answer)[1:] == pytest.approx([one.logprob for one in wanted.likelihoods][1:], abs=1e-5)
