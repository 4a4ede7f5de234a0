"""Rows of one prompt that are in the engine at once: what they share, what each runs by itself, what they say."""

import pytest

from core.effects import KVPrefix, SoftPrompt
from core.specs.generation import QueueSpec
from core.specs.template import Layout
from tests.worker.engine.test_prefix_cache import served, soft
from worker.engine.prefix_cache import BLOCK
from worker.engine.seating import Seating

PROMPT = "one and the same prompt, well over two blocks"  # 45 tokens
SEEDS = [{"temperature": 1.0, "seed": 7 + n, "max_tokens": 6} for n in range(4)]
LABELS = ["yes", "no", "perhaps not"]


@pytest.fixture(params=[0, 1 << 24], ids=["nothing is kept", "blocks are kept"])
def crowd(new_kitchen, request):
    """new(**Engine arguments): with blocks of prompts kept, and without."""
    return lambda **asked: new_kitchen(**{"prefix_cache_bytes": request.param, "token_budget": 64} | asked)


def choices(kitchen, asked, **shared):
    """The answers to one prompt, asked at once; and how many tokens of chunks ran for them."""
    before = kitchen.engine.prompt_tokens
    answers = [kitchen.ask(prompt=PROMPT, **shared, **one) for one in asked]
    kitchen.run()
    return [answer.ids for answer in answers], kitchen.engine.prompt_tokens - before


def alone(kitchen, asked, **shared):
    """The same, one after another, and nobody's: nothing of them is known to any other."""
    return [kitchen.tell(prompt=PROMPT, queue=QueueSpec(), **shared, **one).ids for one in asked]


def worn_by(kitchen, new_effects, monkeypatch):
    """The base, and an adapter of each effect, a template with anchors among them."""
    made = new_effects(kitchen.facts, seed=1)
    effects = [made["rank 4"], made["prefix"], made["prompt"], soft(kitchen, 3, Layout((-1, -2, 7), (9, -3, -4, -5)))]
    assert {type(effect) for effect in effects} >= {KVPrefix, SoftPrompt}
    return [None, *served(kitchen, monkeypatch, effects)]


def test_choices_of_one_prompt_run_it_once_and_say_what_they_say_alone(crowd, new_effects, monkeypatch):
    kitchen, virtual = crowd(), [0, 0, 0, 4, 7]
    for adapter, more in zip(worn_by(kitchen, new_effects, monkeypatch), virtual, strict=True):
        wanted = alone(kitchen, SEEDS, adapter=adapter)
        found, ran = choices(kitchen, SEEDS, adapter=adapter)
        assert found == wanted
        assert len({tuple(ids) for ids in found}) > 1  # the choices are not one
        assert ran == len(PROMPT) + more, adapter


def test_without_waiting_each_would_run_the_prompt_by_itself(crowd, monkeypatch):
    """Negative control of the law above."""
    monkeypatch.setattr(Seating, "awaits", lambda *_: False)
    assert choices(crowd(token_budget=256), SEEDS)[1] == len(SEEDS) * len(PROMPT)


@pytest.mark.parametrize("budget", [9, 17, 32])
def test_in_chunks_that_end_within_blocks_it_is_the_same(crowd, budget):
    kitchen = crowd(token_budget=budget)
    wanted = alone(kitchen, SEEDS)
    found, ran = choices(kitchen, SEEDS)
    assert found == wanted
    # Once less than a block is left nobody waits for it.
    assert len(PROMPT) <= ran < len(PROMPT) + 3 * BLOCK


def test_rows_of_other_tenants_adapters_or_prompts_wait_for_nobody(crowd):
    kitchen = crowd(token_budget=512)
    adapter = kitchen.publish(r=8)
    kitchen.tell(adapter=adapter)
    before = kitchen.engine.prompt_tokens
    kitchen.ask(prompt=PROMPT)
    kitchen.ask(prompt=PROMPT, queue=QueueSpec(tenant="another"))
    kitchen.ask(prompt=PROMPT, queue=QueueSpec())
    kitchen.ask(prompt=PROMPT, queue=QueueSpec())
    kitchen.ask(prompt=PROMPT, adapter=adapter)
    kitchen.ask(prompt=PROMPT[::-1])
    kitchen.engine.step()
    assert kitchen.engine.prompt_tokens - before == 6 * len(PROMPT)
    kitchen.run()


def test_a_row_whose_twin_is_gone_runs_what_is_left_by_itself(crowd):
    kitchen = crowd(token_budget=8)
    wanted = alone(kitchen, SEEDS[:2])
    first, second = (kitchen.ask(prompt=PROMPT, **one) for one in SEEDS[:2])
    for _ in range(3):
        kitchen.engine.step()
    kitchen.engine.cancel(first.key)
    kitchen.run()
    assert (first.ids, second.ids) == ([], wanted[1])


def test_a_twin_whose_numbers_are_no_numbers_hands_on_nothing(crowd, monkeypatch):
    kitchen = crowd()
    wanted = alone(kitchen, SEEDS[:2])
    plain, calls = kitchen.model.__class__.forward, []

    def spoilt_once(*asked):
        calls.append(1)
        return plain(*asked) * (float("nan") if len(calls) == 1 else 1.0)

    monkeypatch.setattr(kitchen.model.__class__, "forward", spoilt_once)
    first, second = (kitchen.ask(prompt=PROMPT, **one) for one in SEEDS[:2])
    kitchen.run()
    assert first.error.code == "model_output_invalid"
    assert second.ids == wanted[1]


def test_labels_behind_one_prompt_read_its_blocks_once_and_are_as_likely_as_alone(new_kitchen):
    kitchen = new_kitchen(prefix_cache_bytes=1 << 24, token_budget=64)
    read = [{"what": "likelihood", "answer": label} for label in LABELS]
    wanted = [kitchen.tell(prompt=PROMPT, read=one, queue=QueueSpec()).frames[0].likelihoods for one in read]
    before = kitchen.engine.prompt_tokens
    answers = [kitchen.ask(prompt=PROMPT, read=one) for one in read]
    kitchen.run()
    # A row that is read leaves as soon as it has been: what it ran is known by its blocks.
    own = [len(PROMPT) + len(LABELS[0]), *(len(PROMPT) % BLOCK + len(label) for label in LABELS[1:])]
    assert kitchen.engine.prompt_tokens - before == sum(own)
    for answer, alone_it_is in zip(answers, wanted, strict=True):
        found = answer.frames[0].likelihoods
        assert [one.id for one in found] == [one.id for one in alone_it_is]
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in alone_it_is], abs=1e-5)
