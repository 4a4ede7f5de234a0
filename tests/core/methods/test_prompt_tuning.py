"""Prompt tuning as a method: how it starts, what it counts, what it tells PEFT."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from core.effects import Ensemble, SoftPrompt
from core.methods import METHODS
from core.methods.prompt_tuning import PromptTuning, generator_of_member
from core.specs.method import PromptTuningSpec


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def facts(new_facts):
    """A letter is a word, and words 0 to 2 are none."""
    return replace(new_facts(), encode=lambda text: [ord(c) - 97 for c in text], specials=frozenset({0, 1, 2}))


def prompt(facts, count=6, *, seed=0, start=None, **spec):
    spec = PromptTuningSpec(num_virtual_tokens=count, **spec)
    return PromptTuning(spec, facts, generator=seeded(seed), start=start).effect().prompt


def test_it_is_among_the_methods_and_learns_a_row_for_each_virtual_token(facts):
    assert METHODS["prompt_tuning"] is PromptTuning
    method = PromptTuning(PromptTuningSpec(num_virtual_tokens=6), facts)
    assert [p.shape for p in method.parameters()] == [(6, 64)]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in method.parameters())
    assert method.penalty().item() == 0


def test_at_random_it_is_uniform_within_a_half(facts):
    found = prompt(facts, 300, prompt_tuning_init="random")
    assert 0.49 < found.abs().max() <= 0.5
    assert found.std().item() == pytest.approx(1 / 12**0.5, rel=0.02)


def words_of(found, facts):
    """Which row of the table each virtual token is."""
    same = (found[:, None] == facts.table[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.long().argmax(1).tolist()


def test_from_the_vocabulary_it_is_distinct_frequent_words_and_none_is_special(facts):
    words = words_of(prompt(facts, 96), facts)
    assert sorted(words) == list(range(3, 99))
    assert words != sorted(words)
    many = replace(facts, vocabulary=5500, table=torch.arange(5500.0)[:, None].expand(-1, 64))
    assert max(words_of(prompt(many, 512), many)) < 5000


def test_a_vocabulary_of_too_few_words_is_refused(facts):
    with pytest.raises(ValueError, match="has 96 words to start from; num_virtual_tokens asks for 97"):
        prompt(facts, 97)


@pytest.mark.parametrize("start", ["random", "vocab"])
def test_the_same_generator_starts_the_same_prompt(start, facts):
    first, again, other = (prompt(facts, seed=seed, prompt_tuning_init=start) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_from_class_labels_it_is_the_mean_of_each_and_words_after_them(facts):
    found = prompt(facts, 4, prompt_tuning_init="class_label", class_labels=("spam", "ok"))
    spam = [18, 15, 0, 12]
    assert torch.allclose(found[0], facts.table[spam].mean(0), atol=1e-7)
    assert torch.allclose(found[1], facts.table[[14, 10]].mean(0), atol=1e-7)
    assert len(set(words_of(found[2:], facts))) == 2


@pytest.mark.parametrize(("count", "letters"), [(2, "fr"), (5, "fragi"), (10, "fragilefra")])
def test_from_a_text_it_is_its_words_again_and_again_or_some_of_them(count, letters, facts):
    found = prompt(facts, count, prompt_tuning_init="text", prompt_tuning_init_text="fragile")
    assert torch.equal(found, facts.table[[ord(c) - 97 for c in letters]])


def test_a_text_without_a_tokeniser_is_refused(facts):
    with pytest.raises(ValueError, match="no tokeniser"):
        prompt(replace(facts, encode=None), prompt_tuning_init="text", prompt_tuning_init_text="x")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_from_another_prompt_it_is_that_cut_or_repeated(count, facts):
    other = torch.randn(3, 64)
    found = prompt(facts, count, start=SoftPrompt(other), prompt_tuning_init="adapter", init_adapter="mine")
    assert torch.equal(found, torch.cat([other] * 3)[:count])
    with torch.no_grad():
        found.zero_()
    assert other.any()  # a copy was trained


def test_a_prompt_to_start_from_that_is_missing_or_of_another_base_is_refused(facts):
    told = {"prompt_tuning_init": "adapter", "init_adapter": "mine"}
    with pytest.raises(ValueError, match="'mine' is not at hand"):
        prompt(facts, **told)
    with pytest.raises(ValueError, match="32 wide, this base model 64"):
        prompt(facts, start=SoftPrompt(torch.zeros(3, 32)), **told)


@pytest.mark.parametrize("start", ["random", "vocab"])
def test_members_of_an_ensemble_start_apart_the_first_as_a_prompt_alone(start, facts):
    spec = PromptTuningSpec(num_virtual_tokens=4, ensemble_size=3, prompt_tuning_init=start)
    effect = PromptTuning(spec, facts, generator=seeded(5)).effect()
    assert isinstance(effect, Ensemble)
    one, two, three = (member.prompt for member in effect.members)
    assert torch.equal(one, prompt(facts, 4, seed=5, prompt_tuning_init=start))
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    second = generator_of_member(seeded(5), 1).initial_seed()
    assert torch.equal(two, prompt(facts, 4, seed=second, prompt_tuning_init=start))


def test_members_are_clipped_by_themselves(facts):
    groups = PromptTuning(PromptTuningSpec(ensemble_size=3), facts).groups()
    assert [(len(group.parameters), group.is_clipped_alone) for group in groups] == [(1, True)] * 3


@pytest.mark.parametrize(
    "start",
    [
        {"prompt_tuning_init": "text", "prompt_tuning_init_text": "x"},
        {"prompt_tuning_init": "adapter", "init_adapter": "x"},
        {"prompt_tuning_init": "class_label", "class_labels": ("a", "b"), "num_virtual_tokens": 2},
    ],
)
def test_an_ensemble_that_starts_alike_is_refused(start):
    PromptTuningSpec(**start)
    with pytest.raises(ValidationError, match="would start alike"):
        PromptTuningSpec(**start, ensemble_size=2)


def test_more_labels_than_virtual_tokens_are_refused():
    with pytest.raises(ValidationError, match="num_virtual_tokens 1 is less than 2 class_labels"):
        PromptTuningSpec(num_virtual_tokens=1, prompt_tuning_init="class_label", class_labels=("a", "b"))


def test_peft_is_told_of_a_random_start_so_that_nobody_fetches_a_tokeniser(facts):
    spec = PromptTuningSpec(num_virtual_tokens=4, ensemble_size=2, base_precision="nf4")
    method = PromptTuning(spec, facts)
    assert method.peft_config() == {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": 4,
        "token_dim": 64,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    assert method.base_precision == "nf4"
