"""The one forward on kernels says what it says without them. Run by test_kernels.py through Triton's interpreter."""

import pytest
import torch

from core.base.facts import facts_of
from core.base.nf4 import quantise_linears
from core.cache import KVCache
from core.decode import StillStep
from core.model import RoutedModel, Rows
from core.ops import choice
from core.packed_model import pack_model
from core.routing import Routing


@pytest.fixture(params=[False, True], ids=["apart", "siblings"])
def models(request, new_base, monkeypatch):
    """A model on kernels, one without, and how to serve by kernels."""
    plain = RoutedModel(new_base("qwen2"))  # which has biases
    monkeypatch.setattr(choice, "has_kernels", lambda _: True)
    fast = RoutedModel(new_base("qwen2"))
    if request.param:
        assert pack_model(fast)
    return plain, fast


def served(model, effects, words, monkeypatch, *, by_kernels):
    """Logits of prompts of their lengths in a cache, then of one more token of each."""
    monkeypatch.setattr(choice, "has_kernels", lambda _: by_kernels)
    worn = [model.resident(effect) if effect is not None else None for effect in effects]
    cache, found = KVCache.for_model(model, len(words) + 1, 48), []
    slots = [cache.take() for _ in words]
    for slot, effect in zip(slots, worn, strict=True):
        if hasattr(effect, "keys"):
            cache.put_prefix(slot, effect)
    for step in (words, [[7]] * len(words)):
        rows = Rows.of(step, first_positions=[cache.lengths[slot] for slot in slots], slots=slots)
        with torch.inference_mode(), model.wearing(Routing.of_rows(worn)):
            found.append(model.logits(model(rows, cache)))
    return found


def test_rows_of_all_effects_say_by_kernels_what_they_say_without(models, new_facts, new_effects, monkeypatch):
    made = new_effects(new_facts("qwen2"))
    effects = [made["rank 4"], made["rank 7, few sites"], None, made["prefix"]]
    words = [[(3 + 11 * n + i) % 90 for i in range(length)] for n, length in enumerate((4, 2, 1, 2))]
    plain, fast = models
    expected = served(plain, effects, words, monkeypatch, by_kernels=False)
    here = served(fast, effects, words, monkeypatch, by_kernels=True)
    for one, other in zip(here, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert not torch.equal(here[0], expected[0])  # the sums differ in their order, so both ways were gone


def test_a_still_step_says_by_kernels_what_the_one_forward_says(models, new_facts, new_effects, monkeypatch):
    plain, fast = models
    made = new_effects(new_facts("qwen2"))
    effects, words = [made["rank 4"], None, made["prefix"]], [[5, 6], [7], [8, 9]]
    expected = served(plain, effects, words, monkeypatch, by_kernels=False)[1]
    monkeypatch.setattr(choice, "has_kernels", lambda _: True)
    worn, cache = [e and fast.resident(e) for e in effects], KVCache.for_model(fast, 4, 48)
    slots = [cache.take() for _ in worn]
    cache.put_prefix(slots[2], worn[2])
    rows = Rows.of(words, first_positions=[cache.lengths[s] for s in slots], slots=slots)
    with torch.inference_mode(), fast.wearing(Routing.of_rows(worn)):
        fast(rows, cache)
    with torch.inference_mode():
        step = StillStep(fast, cache, 4, is_bare=False)
        step.fill([7, 7, 7], slots, worn)
        torch.testing.assert_close(fast.logits(step.run()[:3]), expected, atol=2e-5, rtol=1e-4)


def test_a_base_in_nf4_says_by_kernels_what_it_says_without(new_base, monkeypatch):
    base = new_base("llama")
    quantise_linears(base, head=base.get_output_embeddings(), device=torch.device("cpu"), dtype=torch.float32)
    model, found = RoutedModel(base), []
    assert facts_of(base).sites
    for by_kernels in (False, True):
        monkeypatch.setattr(choice, "has_kernels", lambda _, told=by_kernels: told)
        with torch.inference_mode(), model.wearing(Routing.of_rows([None])):
            found.append(model.logits(model(Rows.of([[5, 6, 7]]))))
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)
    assert not torch.equal(*found)  # the sums differ in their order, so both ways were gone
