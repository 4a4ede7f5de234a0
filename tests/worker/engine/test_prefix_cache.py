"""Shared prompts: what is reused, for whom, within which bounds; and that nothing is said differently."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.cache import KVCache
from core.effects import Ensemble, KVPrefix, SoftPrompt
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.specs.generation import AdapterRef, QueueSpec
from core.specs.template import Layout
from worker.engine import prefix_cache as module
from worker.engine.prefix_cache import BLOCK, PrefixCache, Root

PROMPT = "one and the same prompt, three blocks of it, whole"
BYTES = 1 << 24


@pytest.fixture
def cached(new_kitchen):
    """A kitchen that keeps prompts."""
    return new_kitchen(prefix_cache_bytes=BYTES, base="tiny/fp32", token_budget=64)


def told(kitchen):
    return kitchen.engine.status()["prefix_cache"]


def hits(kitchen, **asked):
    """The answer's tokens, and how many of its prompt's were reused."""
    before = told(kitchen)["hits"]
    answer = kitchen.tell(**{"prompt": PROMPT, "max_tokens": 3} | asked)
    return answer.ids, told(kitchen)["hits"] - before


def said(kitchen, adapters):
    return [hits(kitchen, adapter=adapter)[0] for adapter in adapters]


def in_turn(kitchen):
    """The base, two adapters, and the first of them again: serving.md's test of the wrong adapter's keys."""
    a, b = (kitchen.publish(seed=seed, r=8, lora_alpha=64.0) for seed in (1, 2))
    return [None, a, b, a, None, b]


def test_a_prompt_on_the_base_and_on_two_adapters_says_what_it_says_without_the_cache(cached, new_kitchen):
    adapters = in_turn(cached)
    found = said(cached, adapters)
    assert found == said(new_kitchen(), adapters)
    assert len({tuple(ids) for ids in found}) == 3  # or a wrong adapter's keys would not show
    assert told(cached)["hits"] == 3 * 3 * BLOCK  # the second time of each


def test_a_key_without_the_adapter_would_give_one_adapter_the_keys_of_another(cached, new_kitchen, monkeypatch):
    """Negative control of the law above."""
    plain = Root.link
    monkeypatch.setattr(Root, "link", lambda root, base: plain(dataclasses.replace(root, adapter=None), base))
    adapters = in_turn(cached)
    assert said(cached, adapters) != said(new_kitchen(), adapters)


def test_tenants_share_nothing(cached):
    alone = [hits(cached)[1], hits(cached)[1]]
    assert alone == [0, 3 * BLOCK]
    for tenant in ("a" * 64, "b" * 64):
        assert [hits(cached, queue=QueueSpec(tenant=tenant))[1] for _ in range(2)] == [0, 3 * BLOCK]


def test_a_key_without_the_tenant_would_let_one_see_what_another_asked(cached, monkeypatch):
    """Negative control of the law above."""
    plain = Root.link
    monkeypatch.setattr(Root, "link", lambda root, base: plain(dataclasses.replace(root, tenant="x"), base))
    hits(cached, queue=QueueSpec(tenant="a"))
    assert hits(cached, queue=QueueSpec(tenant="b"))[1] == 3 * BLOCK


def test_what_is_nobodys_is_kept_for_nobody(cached):
    assert [hits(cached, queue=QueueSpec())[1] for _ in range(2)] == [0, 0]
    assert told(cached)["bytes"] == 0


@pytest.mark.parametrize("what", ["likelihood", "embedding"])
def test_a_row_of_which_each_token_is_told_runs_whole(cached, what):
    hits(cached)
    before = told(cached)["hits"]
    cached.tell(prompt=PROMPT, read={"what": what})
    assert told(cached)["hits"] == before


def test_roots_differ_by_all_that_keys_and_values_depend_on():
    bases, tenants, adapters, members = ("m/bf16", "m/nf4"), ("", "t"), (None, "0" * 64, "1" * 64), (0, 1)
    found = {
        Root(tenant, adapter, member).link(base)
        for base, tenant, adapter, member in itertools.product(bases, tenants, adapters, members)
    }
    assert len(found) == len(bases) * len(tenants) * len(adapters) * len(members)
    assert Root("a", "b").link("c") != Root("ab", "").link("c")


def served(kitchen, monkeypatch, effects):
    """Each effect under a digest of its own."""
    by_digest = {f"{i:064x}": e for i, e in enumerate(effects)}

    def load(digest):
        effect, fit = by_digest[digest], kitchen.model.resident
        return Ensemble(tuple(map(fit, effect.members))) if isinstance(effect, Ensemble) else fit(effect)

    monkeypatch.setattr(kitchen.engine._residency, "_load", load)
    return [AdapterRef(id=digest[-4:], sha256=digest) for digest in by_digest]


def soft(kitchen, seed, layout=None):
    prompt = torch.randn(5, kitchen.facts.hidden, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(prompt, layout)


def effects_of(kitchen, new_effects):
    """Two of each kind: rows of one kind have the same tokens, so only the digest tells them apart."""
    twice = [new_effects(kitchen.facts, seed=seed) for seed in (1, 2)]
    template = Layout((-1, -2, 7), (9, -3, -4, -5))
    kinds = [[effects[name] for effects in twice] for name in ("prompt", "prefix")]
    return [effect for kind in [*kinds, [soft(kitchen, s, template) for s in (3, 4)]] for effect in kind]


def test_soft_prompts_prefixes_and_templates_are_reused_and_never_mixed_up(
    cached, new_kitchen, new_effects, monkeypatch
):
    effects = effects_of(cached, new_effects)
    assert {type(effect) for effect in effects} == {SoftPrompt, KVPrefix}
    plain = new_kitchen()
    mine, its = (served(kitchen, monkeypatch, effects) for kitchen in (cached, plain))
    first, again = ([hits(cached, adapter=adapter) for adapter in mine] for _ in range(2))
    wanted = said(plain, its)
    assert [ids for ids, _ in first] == [ids for ids, _ in again] == wanted
    assert [reused for _, reused in first] == [0] * len(effects)
    assert all(reused >= 3 * BLOCK for _, reused in again)
    assert len({tuple(ids) for ids in wanted}) > len(effects) // 2


def test_members_of_one_ensemble_share_nothing(cached, monkeypatch):
    (adapter,) = served(cached, monkeypatch, [Ensemble((soft(cached, 1), soft(cached, 2)))])
    found = [hits(cached, adapter=adapter.model_copy(update={"member": m})) for m in (0, 1, 0, 1)]
    assert [reused for _, reused in found] == [0, 0, 3 * BLOCK, 3 * BLOCK]
    assert found[0][0] == found[2][0] != found[1][0] == found[3][0]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_logits_after_reused_entries_are_those_of_a_whole_run(new_base, family):
    model = RoutedModel(new_base(family))
    cache = KVCache.for_model(model, 2, 64)
    prefixes = PrefixCache(cache, memory_bytes=BYTES, base="")
    ids = [i % 90 + 5 for i in range(3 * BLOCK + 5)]
    links = prefixes.links(Root(""), ids)

    def logits(slot, first):
        rows = Rows.of([ids[first:]], first_positions=[first], slots=[slot])
        with torch.inference_mode(), model.wearing(Routing.of_rows([None])):
            return model.logits(model(rows, cache)[-1:])

    whole, other = cache.take(), cache.take()
    expected = logits(whole, 0)
    prefixes.keep(whole, 0, links, None)
    assert prefixes.reuse(other, links, len(ids)) == 3 * BLOCK
    assert (logits(other, 3 * BLOCK) - expected).abs().max() <= 1e-5


def test_the_last_token_always_runs(cached):
    prompt = "x" * (2 * BLOCK)
    assert [hits(cached, prompt=prompt)[1] for _ in range(2)] == [0, BLOCK]
    assert [hits(cached, prompt=prompt + "y")[1] for _ in range(2)] == [2 * BLOCK, 2 * BLOCK]


def test_what_an_answer_said_is_known_when_the_conversation_goes_on(cached):
    answer = cached.tell(prompt=PROMPT[:20], max_tokens=20)
    turn = answer.frames[0].prompt_ids + tuple(answer.ids)
    before = told(cached)["hits"]
    after = cached.tell(prompt=(*turn, 9, 9), max_tokens=2)
    assert told(cached)["hits"] - before == 2 * BLOCK
    assert len(after.ids) == 2


def test_rows_of_one_prompt_that_came_at_once_run_it_once(new_kitchen):
    kitchen = new_kitchen(prefix_cache_bytes=BYTES, token_budget=BLOCK, rows=4)
    answers = [kitchen.ask(prompt=PROMPT, max_tokens=3) for _ in range(4)]
    kitchen.run()
    assert len({tuple(answer.ids) for answer in answers}) == 1
    assert told(kitchen)["hits"] == 3 * 3 * BLOCK


def test_a_row_whose_numbers_are_no_numbers_leaves_nothing_to_others(cached, monkeypatch):
    plain = cached.model.__class__.forward
    monkeypatch.setattr(cached.model.__class__, "forward", lambda *asked: plain(*asked) * float("nan"))
    assert cached.tell(prompt=PROMPT).error.code == "model_output_invalid"
    monkeypatch.undo()
    assert told(cached)["bytes"] == 0
    assert hits(cached)[1] == 0


def test_a_deleted_adapters_blocks_are_free(cached):
    adapters = in_turn(cached)
    said(cached, adapters[:3])
    kept = told(cached)["bytes"]
    cached.engine.forget([adapters[1].sha256])
    assert told(cached)["bytes"] == kept * 2 // 3
    assert [hits(cached, adapter=adapter)[1] for adapter in adapters[:3]] == [3 * BLOCK, 0, 3 * BLOCK]
    assert set(cached.engine.status()["adapters"]["resident"]) == {a.sha256 for a in adapters[1:3]}


def test_what_runs_in_an_adapter_that_is_deleted_meanwhile_is_not_kept(cached):
    adapter = cached.publish()
    rows = [cached.ask(prompt=PROMPT, adapter=adapter, max_tokens=n) for n in (3, 9)]
    while not rows[0].frames:
        cached.engine.step() or cached.engine._sleep()
    cached.engine.forget([adapter.sha256])
    cached.run()
    assert [row.fin for row in rows] == ["length", "length"]
    assert (told(cached)["bytes"], cached.engine.adapters()) == (0, [])


@pytest.fixture
def small(llama):
    """Six blocks beside two slots."""
    cache = KVCache.for_model(llama, 2, 8 * BLOCK)
    return cache, PrefixCache(cache, memory_bytes=6 * _bytes(cache), base="")


def _bytes(cache):
    layers, _, heads, _, width = cache.keys.shape
    return 2 * layers * heads * width * BLOCK * cache.keys.element_size()


def keep(cache, prefixes, ids):
    slot = cache.take()
    numbers = torch.tensor(ids, dtype=cache.keys.dtype)[None, None, :, None]
    shape = cache.keys.shape
    entries = numbers.expand(shape[0], shape[2], len(ids), shape[4])
    cache.append(slot, entries, -entries)
    prefixes.keep(slot, 0, prefixes.links(Root(""), ids), None)
    cache.release(slot)


def reuse(cache, prefixes, ids):
    """How many tokens are known; their entries are those that were kept."""
    slot = cache.take()
    count = prefixes.reuse(slot, prefixes.links(Root(""), ids), len(ids))
    keys, values = cache.entries(slot, 0, count)
    assert (keys == torch.tensor(ids[:count], dtype=keys.dtype)[:, None]).all()
    assert (values == -keys).all()
    cache.release(slot)
    return count


rows = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(lambda ns: [n for n in ns for _ in range(BLOCK)] + [7])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traffic=st.lists(st.tuples(st.booleans(), rows), min_size=1, max_size=25))
def test_in_any_traffic_what_is_reused_is_what_was_kept_and_memory_holds(llama, traffic):
    cache = KVCache.for_model(llama, 2, 8 * BLOCK)
    prefixes = PrefixCache(cache, memory_bytes=6 * _bytes(cache), base="")
    for is_kept, ids in traffic:
        if is_kept:
            keep(cache, prefixes, ids)
            assert reuse(cache, prefixes, ids) == len(ids) - 1
        else:
            reuse(cache, prefixes, ids)
        assert prefixes.told()["bytes"] <= prefixes.told()["memory_bytes"] == 6 * _bytes(cache)
        places = [block.place for block in prefixes._blocks.values()] + prefixes._free
        assert sorted(places) == list(range(6))


def test_the_least_recently_used_blocks_leave_and_the_first_of_a_row_last(small):
    cache, prefixes = small
    a, b, c = ([n for n in blocks for _ in range(BLOCK)] + [9] for blocks in ((1, 1, 1), (2, 2, 2), (3, 3)))
    keep(cache, prefixes, a)
    keep(cache, prefixes, b)
    reuse(cache, prefixes, a)
    keep(cache, prefixes, c)
    assert [reuse(cache, prefixes, ids) for ids in (a, b, c)] == [3 * BLOCK, BLOCK, 2 * BLOCK]
    assert prefixes.evictions == 2


def test_a_row_longer_than_the_whole_cache_keeps_its_beginning(small):
    cache, prefixes = small
    ids = list(range(8 * BLOCK))
    keep(cache, prefixes, ids)
    assert reuse(cache, prefixes, ids) == 6 * BLOCK


def test_without_memory_nothing_is_kept(new_kitchen):
    kitchen = new_kitchen()
    assert [hits(kitchen)[1] for _ in range(2)] == [0, 0]
    assert told(kitchen)["memory_bytes"] == 0


def test_links_that_are_known_are_not_made_again(small, monkeypatch):
    _, prefixes = small
    ids = list(range(4 * BLOCK))
    first = prefixes.links(Root(""), ids[: 2 * BLOCK])
    made = []
    plain = module.hashlib.sha256
    monkeypatch.setattr(module.hashlib, "sha256", lambda data: made.append(data) or plain(data))
    assert prefixes.links(Root(""), ids, first)[:2] == first
    assert len(made) == 2
    assert isinstance(first[0], bytes)
