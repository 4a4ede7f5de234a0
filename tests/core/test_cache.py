"""Slots are taken, filled, released and taken again."""

import pytest
import torch

from core.cache import KVCache
from core.effects import KVPrefix
from core.model import RoutedModel


@pytest.fixture
def cache(llama) -> KVCache:
    return KVCache.for_model(llama, slots=2, length=8)


def prefix(count, *, layers=2, heads=2, width=16) -> KVPrefix:
    return KVPrefix(torch.ones(layers, count, heads, width), torch.ones(layers, count, heads, width) * 2)


@pytest.mark.parametrize(("family", "heads", "width"), [("gemma3", 2, 16), ("gpt2", 4, 16), ("gpt_neox", 4, 16)])
def test_a_cache_has_the_shape_of_its_model(family, heads, width, new_base):
    cache = KVCache.for_model(RoutedModel(new_base(family, torch.bfloat16)), slots=3, length=5)
    assert cache.keys.shape == cache.values.shape == (2, 3, heads, 5, width)
    assert cache.keys.dtype == torch.bfloat16
    assert cache.lengths == [0, 0, 0]


def test_the_lowest_free_slot_is_taken_until_none_is_free(cache):
    assert [cache.take(), cache.take(), cache.take()] == [0, 1, None]
    cache.release(0)
    assert cache.take() == 0


def test_a_slot_that_is_not_taken_cannot_be_released(cache):
    with pytest.raises(ValueError, match="not taken"):
        cache.release(1)


def test_a_prefix_is_the_first_entries_of_its_slot(cache):
    slot = cache.take()
    effect = prefix(3)
    cache.put_prefix(slot, effect)
    assert cache.lengths[slot] == 3
    assert torch.equal(cache.keys[:, slot, :, :3].transpose(1, 2), effect.keys)
    assert torch.equal(cache.values[:, slot, :, :3].transpose(1, 2), effect.values)
    assert not cache.keys[:, slot, :, 3:].any()


@pytest.mark.parametrize(
    ("effect", "reason"),
    [(prefix(9), "does not fit"), (prefix(3, heads=4), "the cache"), (prefix(3, layers=1), "the cache")],
)
def test_a_prefix_that_does_not_fit_is_refused(cache, effect, reason):
    with pytest.raises(ValueError, match=reason):
        cache.put_prefix(cache.take(), effect)


def test_a_second_prefix_in_one_slot_is_refused(cache):
    slot = cache.take()
    cache.put_prefix(slot, prefix(3))
    with pytest.raises(ValueError, match="already holds 3"):
        cache.put_prefix(slot, prefix(3))


def test_a_released_slot_is_empty(cache):
    slot = cache.take()
    cache.put_prefix(slot, prefix(3))
    cache.release(slot)
    assert (cache.lengths[slot], cache.prefixes[slot]) == (0, None)


def entries(count, value=1.0, *, layers=2, heads=2, width=16):
    return torch.full((layers, heads, count, width), value)


def test_entries_that_were_computed_before_come_behind_those_of_the_slot(cache):
    slot = cache.take()
    cache.put_prefix(slot, prefix(2))
    cache.append(slot, entries(3, 5.0), entries(3, 6.0))
    assert cache.lengths[slot] == 5
    keys, values = cache.entries(slot, 2, 3)
    assert (keys == 5).all()
    assert (values == 6).all()
    assert (cache.entries(slot, 0, 2)[0] == 1).all()
    assert keys.data_ptr() == cache.keys[:, slot, :, 2:].data_ptr()  # where they lie, no copy


@pytest.mark.parametrize(
    ("found", "reason"),
    [(entries(9), "do not fit"), (entries(3, heads=4), "the cache"), (entries(3, width=8), "the cache")],
)
def test_entries_that_do_not_fit_are_refused(cache, found, reason):
    with pytest.raises(ValueError, match=reason):
        cache.append(cache.take(), found, found)


@pytest.mark.parametrize(("first", "count"), [(0, 4), (-1, 2), (3, 1)])
def test_entries_that_are_not_filled_are_not_given_out(cache, first, count):
    slot = cache.take()
    cache.append(slot, entries(3), entries(3))
    with pytest.raises(ValueError, match="holds 3 entries"):
        cache.entries(slot, first, count)
