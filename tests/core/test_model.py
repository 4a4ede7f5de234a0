"""What the forward asks of its callers, and what it says to those who do otherwise."""

import dataclasses

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from core.cache import KVCache
from core.effects import KVPrefix, LowRank, SoftPrompt
from core.model import RoutedModel, Rows
from core.routing import Routing


def test_rows_stand_one_after_another_without_padding():
    rows = Rows.of([[5, 6, 7], torch.tensor([8]), (9, -1)], first_positions=[0, 4, 2], slots=[3, 1, 0])
    assert rows.ids.tolist() == [5, 6, 7, 8, 9, -1]
    assert rows.positions.tolist() == [0, 1, 2, 4, 2, 3]
    assert rows.starts == (0, 3, 4, 6)
    assert rows.slots == (3, 1, 0)
    assert len(rows) == 3


@pytest.mark.parametrize("rows", [[], [[1], []]])
def test_an_empty_batch_or_row_is_refused(rows):
    with pytest.raises(ValueError, match="at least one"):
        Rows.of(rows)


def test_a_call_outside_wearing_is_refused_before_and_after(llama):
    rows = Rows.of([[5, 6]])
    with pytest.raises(RuntimeError, match="outside"):
        llama(rows)
    with llama.wearing(Routing.of_rows([None])):
        llama(rows)
    with pytest.raises(RuntimeError, match="outside"):
        llama(rows)


def test_wearing_is_taken_off_when_its_body_fails(llama):
    with pytest.raises(KeyError), llama.wearing(Routing.of_rows([None])):
        raise KeyError
    with pytest.raises(RuntimeError, match="outside"):
        llama(Rows.of([[5]]))


def test_wearing_within_wearing_is_refused(llama):
    with (
        llama.wearing(Routing.of_rows([None])),
        pytest.raises(RuntimeError, match="open already"),
        llama.wearing(Routing.of_rows([None])),
    ):
        pass


def test_a_second_forward_under_checkpointing_is_refused(new_base):
    model = RoutedModel(new_base(), checkpointing=True)
    with model.wearing(Routing.of_rows([None])):
        model(Rows.of([[5, 6]]))
        with pytest.raises(RuntimeError, match="one forward"):
            model(Rows.of([[5, 6]]))


def test_a_routing_of_other_rows_is_refused(llama):
    with llama.wearing(Routing.of_rows([None, None])), pytest.raises(ValueError, match="routing is of 2 rows"):
        llama(Rows.of([[5, 6]]))


def test_a_family_whose_laws_are_untested_is_refused():
    base = AutoModelForCausalLM.from_config(transformers.BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(ValueError, match="'bloom' are not supported"):
        RoutedModel(base)


def test_the_output_head_wears_nothing(llama):
    assert "lm_head" not in llama.sites
    assert len(llama.sites) == 2 * 7


def test_learned_positions_end_with_a_clear_word(new_base):
    model = RoutedModel(new_base("gpt2"))
    with model.wearing(Routing.of_rows([None])):
        model(Rows.of([[5] * 64]))
        with pytest.raises(ValueError, match="position 64; this base model has learned 64"):
            model(Rows.of([[5] * 65]))


def test_a_frozen_model_has_no_modes(new_base):
    model = RoutedModel(new_base("gpt2")).train()
    rows = Rows.of([[5] * 20])
    with torch.no_grad(), model.wearing(Routing.of_rows([None])):
        assert torch.equal(model(rows), model(rows))  # GPT-2 has dropout of its own
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [(None, [5, -1], "virtual token 0, its soft prompt 0"), ("prompt", [-5, 5], "virtual token 4, its soft prompt 4")],
)
def test_a_virtual_token_that_no_prompt_supplies_is_refused(kind, row, reason, *, llama, new_facts, new_effects):
    effect = None if kind is None else new_effects(new_facts())[kind]
    with llama.wearing(Routing.of_rows([effect])), pytest.raises(ValueError, match=reason):
        llama(Rows.of([row]))


def test_a_prefix_row_that_counts_from_0_is_refused(llama, new_facts, new_effects):
    routing = Routing.of_rows([new_effects(new_facts())["prefix"]])
    with llama.wearing(routing), pytest.raises(ValueError, match="positions start at 3"):
        llama(Rows.of([[5, 6]]))


@pytest.mark.parametrize(
    ("slots", "reason"), [(None, "needs a slot"), ([0, 0], "of its own"), ([0, 1], "slot 1 is not taken")]
)
def test_slots_that_do_not_fit_the_rows_are_refused(slots, reason, llama):
    cache = KVCache.for_model(llama, slots=2, length=8)
    cache.take()
    with llama.wearing(Routing.of_rows([None, None])), pytest.raises(ValueError, match=reason):
        llama(Rows.of([[5], [6]], slots=slots), cache)
    assert cache.lengths == [0, 0]


def test_a_row_longer_than_its_slot_is_refused(llama):
    cache = KVCache.for_model(llama, slots=1, length=4)
    slot = cache.take()
    with llama.wearing(Routing.of_rows([None])):
        llama(Rows.of([[5, 6, 7]], slots=[slot]), cache)
        with pytest.raises(ValueError, match="holds 3 of 4 entries: 2 more do not fit"):
            llama(Rows.of([[5, 6]], slots=[slot], first_positions=[3]), cache)
    assert cache.lengths == [3]


def test_a_slot_without_its_rows_prefix_is_refused_and_so_is_one_with_anothers(llama, new_facts, new_effects):
    prefix = new_effects(new_facts())["prefix"]
    cache = KVCache.for_model(llama, slots=2, length=8)
    empty, filled = cache.take(), cache.take()
    cache.put_prefix(filled, prefix)
    for effect, slot in ((prefix, empty), (None, filled)):
        with llama.wearing(Routing.of_rows([effect])), pytest.raises(ValueError, match="put_prefix"):
            llama(Rows.of([[5]], slots=[slot], first_positions=[3]), cache)


def test_a_resident_effect_answers_as_the_live_one_in_long_rows_and_short(model, family, new_facts, new_lora):
    live = new_lora(new_facts(family)).effect()
    served = model.resident(live)
    for rows in ([[5, 6, 7], [8]], [list(range(3, 33)), [8, 9]]):
        found = []
        for effect in (live, served):
            with torch.no_grad(), model.wearing(Routing.of_rows([effect, effect])):
                found.append(model(Rows.of(rows)))
        torch.testing.assert_close(*found, atol=2e-5, rtol=1e-5)


def test_a_live_adapter_is_read_anew_at_every_call(llama, new_facts, new_lora):
    lora = new_lora(new_facts())
    effect, rows = lora.effect(), Rows.of([[5, 6, 7]])
    with torch.no_grad(), llama.wearing(Routing.of_rows([effect])):
        before = llama(rows)
        for b in lora.b:
            b.mul_(2)
        assert not torch.allclose(llama(rows), before, atol=1e-3)


def test_an_effect_of_another_base_model_is_refused(llama, new_facts, new_effects):
    other = new_effects(new_facts("gpt2"))
    with pytest.raises(ValueError, match="no layer named"):
        llama.resident(other["rank 4"])
    with pytest.raises(ValueError, match="the base model"):
        llama.resident(other["prefix"])
    mine = new_effects(new_facts())
    site = next(iter(mine["rank 4"].a))
    with pytest.raises(ValueError, match=f"{site}: A"):
        llama.resident(LowRank({site: torch.zeros(2, 63)}, {site: torch.zeros(64, 2)}, {site: 1.0}))
    with pytest.raises(ValueError, match="32 wide, the base model 64"):
        llama.resident(SoftPrompt(torch.zeros(3, 32)))
    with pytest.raises(ValueError, match="prefix"):
        llama.resident(KVPrefix(torch.zeros(2, 3, 2, 16), torch.zeros(2, 4, 2, 16)))


@pytest.mark.parametrize("kind", ["rank 4", "prompt", "prefix"])
def test_an_effect_that_is_not_finite_is_refused(kind, llama, new_facts, new_effects):
    effect = new_effects(new_facts())[kind]
    llama.check(effect)
    tensor = next(iter(effect.a.values())) if isinstance(effect, LowRank) else next(iter(vars(effect).values()))
    tensor.view(-1)[1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        llama.check(effect)


def test_sites_that_differ_in_rank_and_scale_are_each_obeyed(llama, new_facts, new_effects):
    whole = new_effects(new_facts())["rank 4"]
    first, second = list(whole.a)[:2]
    halved = dataclasses.replace(
        whole,
        a={first: whole.a[first][:2], second: whole.a[second]},
        b={first: whole.b[first][:, :2], second: whole.b[second]},
        scale={first: 1.0, second: 5.0},
    )
    padded = dataclasses.replace(
        whole,
        a={first: torch.cat([whole.a[first][:2], torch.ones(2, 64)]), second: whole.a[second]},
        b={first: torch.cat([whole.b[first][:, :2], torch.zeros(64, 2)], 1), second: whole.b[second] * 5},
        scale={first: 1.0, second: 1.0},
    )
    found = []
    for effect in (halved, padded, whole):
        with torch.no_grad(), llama.wearing(Routing.of_rows([effect])):
            found.append(llama(Rows.of([[5, 6, 7]])))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-2
