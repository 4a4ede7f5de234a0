"""A decode step of fixed shape says what the one forward says, whoever sits where and wears what."""

import pytest
import torch

from core.cache import KVCache
from core.decode import StillStep, is_still
from core.model import RoutedModel, Rows
from core.routing import Routing

PLACES = 4


class Room:
    """A model and a cache in which rows have read their prompts."""

    def __init__(self, model, effects, prompts, slots):
        self.model = model
        self.worn = [e if e is None else model.resident(e) for e in effects]
        self.cache = KVCache.for_model(model, 6, 48)
        for _ in range(6):
            self.cache.take()
        self.slots = slots
        for slot, effect in zip(slots, self.worn, strict=True):
            if hasattr(effect, "keys"):
                self.cache.put_prefix(slot, effect)
        self.step(prompts)

    def step(self, words):
        """By the one forward."""
        firsts = [self.cache.lengths[slot] for slot in self.slots]
        rows = Rows.of(words, first_positions=firsts, slots=self.slots)
        with torch.inference_mode(), self.model.wearing(Routing.of_rows(self.worn)):
            return self.model.logits(self.model(rows, self.cache))

    def still(self, step, ids):
        """By a step of fixed shape."""
        with torch.inference_mode():
            stamp = step.fill(ids, self.slots, self.worn)
            hidden = step.run()[: len(ids)]
        for slot in self.slots:
            self.cache.lengths[slot] += 1
        return self.model.logits(hidden), stamp


@pytest.fixture
def effects(family, new_facts, new_effects):
    return new_effects(new_facts(family))


PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]


def test_a_still_step_equals_the_one_forward(family, new_base, effects):
    worn, slots = [effects["rank 4"], None, effects["prefix"]], [4, 0, 3]
    one, other = (Room(RoutedModel(new_base(family)), worn, PROMPTS, slots) for _ in range(2))
    step = StillStep(other.model, other.cache, PLACES, is_bare=False)
    for ids in ([20, 21, 22], [23, 24, 25], [26, 27, 28]):
        here, _ = other.still(step, ids)
        torch.testing.assert_close(here, one.step([[i] for i in ids]), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(other.still(step, [20, 21, 22])[0], one.step([[20], [21], [23]]), atol=1e-3)


def test_a_bare_still_step_equals_the_one_forward(llama):
    one = Room(llama, [None] * 3, PROMPTS, [1, 2, 5])
    other = Room(llama, [None] * 3, PROMPTS, [1, 2, 5])
    here, _ = other.still(StillStep(llama, other.cache, 3, is_bare=True), [20, 21, 22])
    torch.testing.assert_close(here, one.step([[20], [21], [22]]), atol=2e-5, rtol=1e-4)


def test_the_stamp_stays_while_rows_move_and_changes_when_the_pool_does(new_base, new_facts, new_effects, new_lora):
    made = new_effects(new_facts())
    room = Room(RoutedModel(new_base()), [made["rank 4"], None, made["rank 2, rslora"]], PROMPTS, [4, 0, 3])
    step = StillStep(room.model, room.cache, PLACES, is_bare=False)
    before = room.still(step, [20, 21, 22])[1]
    mask = step._short
    room.slots, room.worn = room.slots[::-1], room.worn[::-1]
    assert room.still(step, [23, 24, 25])[1] == before
    assert step._short is mask
    wide = room.model.resident(new_lora(new_facts(), seed=7, r=40).effect())
    room.worn[0] = wide
    assert room.still(step, [26, 27, 28])[1] != before


def test_magnitudes_tables_and_live_adapters_are_left_to_the_one_forward(llama, new_facts, new_lora):
    facts = new_facts()
    assert not is_still(new_lora(facts).effect())
    assert is_still(llama.resident(new_lora(facts).effect()))
    assert not is_still(llama.resident(new_lora(facts, use_dora=True).effect()))
    assert not is_still(llama.resident(new_lora(facts, target_modules=("embed_tokens", "q_proj")).effect()))


def test_more_rows_than_places_are_refused(llama):
    room = Room(llama, [None] * 3, PROMPTS, [1, 2, 5])
    with pytest.raises(ValueError, match="3 rows do not go into a step of 2"):
        StillStep(llama, room.cache, 2, is_bare=True).fill([1, 2, 3], room.slots, room.worn)
