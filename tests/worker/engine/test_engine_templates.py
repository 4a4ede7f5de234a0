"""Rows whose adapter puts virtual tokens and anchors about their prompt, and rows that wear one of an ensemble."""

import base64
import dataclasses

import pytest
import torch

from core.effects import Ensemble, SoftPrompt
from core.model import Rows
from core.routing import Routing
from core.specs.generation import AdapterRef
from core.specs.template import parse
from tests.worker.engine.conftest import make_tokenizer

FRONT, PARTED, BEHIND = "{v:4}{input}{target}", "ab{v:2}c{input}: {v:2}?{target}", "{input}{v:4}{target}"
TEMPLATES = (FRONT, PARTED, BEHIND)
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 77, "max_tokens": 12}


def soft_prompt(kitchen, template, seed):
    layout = parse(template).layout(lambda text: make_tokenizer().encode(text))
    drawn = torch.randn(4, kitchen.facts.hidden, generator=torch.Generator().manual_seed(seed)) * 0.5
    return kitchen.model.resident(SoftPrompt(drawn, layout))


@pytest.fixture
def wardrobe(monkeypatch):
    """wardrobe(kitchen, effects): an adapter for each, as if they were in the store."""

    def hang(kitchen, effects):
        digests = {f"{number + 1:064x}": effect for number, effect in enumerate(effects)}
        monkeypatch.setattr(kitchen.engine._residency, "_load", lambda digest: digests[digest])
        return [AdapterRef(id=digest[-3:], sha256=digest) for digest in digests]

    return hang


def said_by_whole_rows(kitchen, effect, prompt, tokens):
    """Greedy, the whole row anew for each token: no cache, no chunks, no neighbours."""
    row = effect.layout.around(make_tokenizer().encode(prompt))
    start = len(row)
    for _ in range(tokens):
        with torch.inference_mode(), kitchen.model.wearing(Routing.of_rows([effect])):
            hidden = kitchen.model(Rows.of([row]))
        row.append(int(kitchen.model.logits(hidden[-1:]).argmax()))
    return row[start:]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("token_budget", [8, 64])
def test_a_templated_row_says_in_company_and_in_chunks_what_its_whole_row_says(
    new_kitchen, wardrobe, family, token_budget
):
    kitchen = new_kitchen(family=family, token_budget=token_budget)
    effects = [soft_prompt(kitchen, template, seed) for seed, template in enumerate(TEMPLATES)]
    adapters = [None, *wardrobe(kitchen, effects)]
    asked = [(adapters[i % 4], text) for i, text in enumerate(["a", "Good morning", "q", "how are you?", "b", "12 3"])]
    alone = [kitchen.tell(prompt=text, adapter=adapter, max_tokens=10).ids for adapter, text in asked]
    together = [kitchen.ask(prompt=text, adapter=adapter, max_tokens=10) for adapter, text in asked]
    kitchen.run()
    assert [answer.ids for answer in together] == alone
    for (adapter, text), said in zip(asked, alone, strict=True):
        if adapter is not None:
            whole = said_by_whole_rows(kitchen, effects[adapters.index(adapter) - 1], text, 10)
            assert said == whole[: len(said)]
    # Negative control: where the virtual tokens stand tells.
    assert len({tuple(kitchen.tell(prompt="same", adapter=adapter).ids) for adapter in adapters}) == 4


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_replay_cut_anywhere_continues_behind_the_template(kitchen, wardrobe, template):
    (adapter,) = wardrobe(kitchen, [soft_prompt(kitchen, template, 1)])
    whole = kitchen.tell(prompt="replay", adapter=adapter, **SAMPLED)
    prompt_ids = whole.frames[0].prompt_ids
    assert prompt_ids == tuple(make_tokenizer().encode("replay"))
    for cut in range(1, len(whole.frames)):
        emitted = tuple(whole.ids[:cut])
        rest = kitchen.tell(prompt=prompt_ids + emitted, offset=cut, adapter=adapter, **SAMPLED)
        assert (rest.ids, rest.fin) == (whole.ids[cut:], whole.fin)
    # Negative control: without the offset the template's middle would come behind what was drawn.
    if template != FRONT:
        wrong = kitchen.tell(prompt=prompt_ids + tuple(whole.ids[:2]), adapter=adapter, temperature=0.0)
        right = kitchen.tell(prompt=prompt_ids + tuple(whole.ids[:2]), offset=2, adapter=adapter, temperature=0.0)
        assert wrong.ids[:8] != right.ids[:8]


@pytest.mark.parametrize("template", TEMPLATES)
def test_virtual_tokens_and_anchors_take_their_share_of_the_context(kitchen, wardrobe, template):
    effect = soft_prompt(kitchen, template, 1)
    (adapter,) = wardrobe(kitchen, [effect])
    answer = kitchen.tell(prompt="x" * 40, adapter=adapter, max_tokens=60)
    assert (len(answer.ids), answer.fin) == (64 - 40 - len(effect.layout), "length")
    too_long = kitchen.tell(prompt="x" * (64 - len(effect.layout)), adapter=adapter)
    assert too_long.error.code == "context_length_exceeded"
    assert f"room for {64 - len(effect.layout) - 1}" in too_long.error.message


def test_a_template_of_ids_that_are_not_there_is_refused_before_it_is_served(kitchen):
    effect = soft_prompt(kitchen, FRONT, 1)
    for wrong in (-5, 99):
        layout = dataclasses.replace(effect.layout, after=(wrong,))
        with pytest.raises(ValueError, match="the template has ids"):
            kitchen.model.resident(dataclasses.replace(effect, template=layout))


def test_a_row_wears_one_member_of_an_ensemble(kitchen, wardrobe):
    members = [soft_prompt(kitchen, template, seed) for seed, template in enumerate(TEMPLATES)]
    ensemble, *singles = wardrobe(kitchen, [Ensemble(tuple(members)), *members])
    alone = [kitchen.tell(adapter=single).ids for single in singles]
    together = [kitchen.ask(adapter=ensemble.model_copy(update={"member": i})) for i in range(3)]
    kitchen.run()
    assert [answer.ids for answer in together] == alone
    assert len(set(map(tuple, alone))) == 3
    assert kitchen.tell(adapter=singles[1].model_copy(update={"member": 0})).ids == alone[1]


@pytest.mark.parametrize("sampling", [{"max_tokens": 8}, SAMPLED])
def test_members_that_are_alike_say_exactly_what_one_alone_says(kitchen, wardrobe, sampling):
    one = soft_prompt(kitchen, FRONT, 1)
    alike = Ensemble(tuple(dataclasses.replace(one, prompt=one.prompt.clone()) for _ in range(5)))
    ensemble, single = wardrobe(kitchen, [alike, one])
    alone = kitchen.tell(adapter=single, with_logprob=True, **sampling)
    together = [
        kitchen.ask(adapter=ensemble.model_copy(update={"member": i}), with_logprob=True, **sampling) for i in range(5)
    ]
    kitchen.run()
    assert all(answer.ids == alone.ids and answer.text == alone.text for answer in together)
    assert all(
        mine.logprob == pytest.approx(frame.logprob, abs=1e-5)
        for answer in together
        for mine, frame in zip(answer.frames, alone.frames, strict=True)
    )


@pytest.mark.parametrize(("member", "reason"), [(None, "none is named"), (2, "there is no member 2")])
def test_an_unknown_member_ends_the_row_and_lets_the_adapter_go(kitchen, wardrobe, member, reason):
    both = Ensemble(tuple(soft_prompt(kitchen, FRONT, seed) for seed in (1, 2)))
    (adapter,) = wardrobe(kitchen, [both])
    answer = kitchen.tell(adapter=adapter.model_copy(update={"member": member}))
    assert (answer.error.code, answer.error.param, answer.error.retryable) == ("unknown_member", "model", False)
    assert "2 members" in answer.error.message
    assert reason in answer.error.message
    assert {r.pins for r in kitchen.engine._residency._residents.values()} == {0}


@pytest.mark.parametrize("sampling", [{"max_tokens": 8}, SAMPLED, SAMPLED | {"top_k": 5}])
def test_a_row_that_asks_is_told_how_likely_its_tokens_were_and_draws_the_same(kitchen, sampling):
    plain = kitchen.tell(prompt="likely", **sampling)
    asked = kitchen.ask(prompt="likely", with_logprob=True, **sampling)
    silent = kitchen.ask(prompt="likely", **sampling)
    kitchen.run()
    assert asked.ids == silent.ids == plain.ids
    assert all(frame.logprob is None for frame in silent.frames)
    assert all(frame.logprob <= 0 for frame in asked.frames)
    row = make_tokenizer().encode("likely")
    for frame in asked.frames:
        with torch.inference_mode(), kitchen.model.wearing(Routing.of_rows([None])):
            logits = kitchen.model.logits(kitchen.model(Rows.of([row]))[-1:])[0].float()
        if "temperature" not in sampling:
            assert frame.logprob == pytest.approx(float(logits.log_softmax(-1)[frame.ids[0]]), abs=1e-4)
        else:
            kept = logits.topk(sampling.get("top_k", 99)).values
            assert frame.logprob >= float(logits[frame.ids[0]] - kept.logsumexp(0)) - 1e-4
        row.append(frame.ids[0])


def test_a_templated_row_is_read_at_its_own_tokens_alone(kitchen, wardrobe):
    effects = [soft_prompt(kitchen, template, seed) for seed, template in enumerate(TEMPLATES)]
    own, answer = make_tokenizer().encode("Good morning"), make_tokenizer().encode("yes")
    for effect, adapter in zip(effects, wardrobe(kitchen, effects), strict=True):
        row = [*effect.layout.around(own), *answer]
        start = len(row) - len(answer) - len(effect.layout.after) - len(own)
        with torch.inference_mode(), kitchen.model.wearing(Routing.of_rows([effect])):
            hidden = kitchen.model(Rows.of([row]))
        found = kitchen.model.logits(hidden).log_softmax(-1)
        asked = {"prompt": "Good morning", "adapter": adapter}
        said = kitchen.tell(**asked, read={"what": "likelihood", "answer": "yes"}).frames[0].likelihoods
        wanted = [float(found[len(row) - 4 + t, answer[t]]) for t in range(3)]
        assert [one.logprob for one in said] == pytest.approx(wanted, abs=1e-5)
        mean = torch.nn.functional.normalize(hidden[start : start + len(own)].mean(0), dim=0)
        frame = kitchen.tell(**asked, read={"what": "embedding"}).frames[0]
        given = torch.frombuffer(bytearray(base64.b64decode(frame.embedding)), dtype=torch.float32)
        assert torch.allclose(given, mean, atol=1e-5)
        # Negative control: with the virtual tokens counted in, it would be another vector.
        assert not torch.allclose(given, torch.nn.functional.normalize(hidden[:-3].mean(0), dim=0), atol=1e-3)
