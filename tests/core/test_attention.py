"""Ragged attention against Hugging Face's own eager attention, with rows long enough for every way it has."""

import pytest
import torch

from core import attention
from core.cache import KVCache
from core.model import RoutedModel, Rows
from core.routing import Routing

LONG = 700


def text(length, seed=0):
    return torch.randint(3, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def bare(model, rows, cache=None, **rows_of):
    with torch.no_grad(), model.wearing(Routing.of_rows([None] * len(rows))):
        return model.logits(model(Rows.of(rows, **rows_of), cache))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
def test_long_rows_equal_eager_attention(family, new_base, monkeypatch):
    row = text(LONG)
    with torch.no_grad():
        eager = new_base(family)(torch.tensor([row])).logits[0]
    model = RoutedModel(new_base(family))
    explicit = bare(model, [row, text(40, 1)])[:LONG]
    monkeypatch.setattr(attention, "SHORT", 100)
    blocked = bare(model, [text(40, 1), row])[40:]
    assert (explicit - eager).abs().max() < 2e-5
    assert (blocked - eager).abs().max() < 2e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("short", [768, 100])
def test_a_prompt_read_in_pieces_equals_the_prompt_read_whole(family, short, new_base, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", short)
    model = RoutedModel(new_base(family))
    row, other = text(500), text(30, 1)
    whole = bare(model, [row])
    cache = KVCache.for_model(model, slots=2, length=512)
    slots = [cache.take(), cache.take()]
    bare(model, [row[:150]], cache, slots=slots[:1])
    bare(model, [other[:1], row[150:499]], cache, slots=slots[::-1], first_positions=[0, 150])
    last = bare(model, [row[499:], other[1:2]], cache, slots=slots, first_positions=[499, 1])
    assert (last[0] - whole[499]).abs().max() < 2e-5
    assert (last[1] - bare(model, [other])[1]).abs().max() < 2e-5


def test_few_rows_in_a_wide_cache_are_copied_out_and_answer_the_same(llama):
    cache = KVCache.for_model(llama, slots=32, length=16)
    taken = [cache.take() for _ in range(32)]
    slots = [taken[1], taken[30]]
    rows = [text(6, 1), text(9, 2)]
    bare(llama, [row[:-1] for row in rows], cache, slots=slots)
    here = bare(llama, [row[-1:] for row in rows], cache, slots=slots, first_positions=[5, 8])
    whole = bare(llama, rows)
    assert (here - whole[[5, 14]]).abs().max() < 1e-5


def test_what_a_released_slot_held_is_not_seen_by_its_next_row(llama):
    cache = KVCache.for_model(llama, slots=2, length=32)
    first, second = cache.take(), cache.take()
    bare(llama, [text(20, 1), text(20, 2)], cache, slots=[first, second])
    cache.release(first)
    assert cache.take() == first
    bare(llama, [text(4, 3)], cache, slots=[first])
    here = bare(llama, [[7], [8]], cache, slots=[first, second], first_positions=[4, 20])
    assert (here[0] - bare(llama, [[*text(4, 3), 7]])[-1]).abs().max() < 1e-5


def test_a_base_model_called_by_itself_is_refused(llama):
    with pytest.raises(RuntimeError, match="RoutedModel"):
        attention.attend_ragged(torch.nn.Module(), *(torch.zeros(1, 2, 3, 4) for _ in range(3)), None)
    with pytest.raises(RuntimeError, match="wearing"):
        llama.base(torch.tensor([[1, 2]]))
