"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): P learned embeddings E in front of every row, [E; emb(x)].

All else is frozen, so P * H numbers are learned. How they start matters less, the larger the base (section 3.2):

random       uniform in [-0.5, 0.5]
vocab        embeddings of distinct words among the first 5000 ids, which tokenisers give to frequent ones
class_label  token i is the mean embedding of the i-th label's tokens; from vocab where there are no more labels
text         embeddings of a text, again and again where the prompt is longer
adapter      another prompt, cut or repeated alike

An ensemble (section 6) is N prompts learned side by side, each exactly as it would be by itself.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.base.facts import BaseFacts, words_of
from core.effects import Effect, Ensemble, SoftPrompt, members_of
from core.optimisers import Group
from core.specs.continuing import must_continue
from core.specs.method import PromptTuningSpec

FREQUENT = 5000  # ids that prompts are drawn from; tokenisers number frequent words first


class PromptTuning(nn.Module):
    """One learned prompt, or the N of an ensemble, in fp32 whatever the base computes in."""

    def __init__(
        self,
        spec: PromptTuningSpec,
        facts: BaseFacts,
        *,
        generator: torch.Generator | None = None,
        start: SoftPrompt | None = None,
    ) -> None:
        """Start from generator (the global one without). start: the prompt of prompt_tuning_init 'adapter'.

        Raises:
            ValueError: the start is missing, of another width, or there are no words to start from.

        """
        super().__init__()
        self.spec = spec
        self.base_precision: str = spec.base_precision
        begin = _STARTS[spec.prompt_tuning_init]
        self.prompts = nn.ParameterList(
            begin(spec, facts, generator_of_member(generator, member), start) for member in range(spec.ensemble_size)
        )

    def effect(self) -> SoftPrompt | Ensemble:
        """The prompt [P, H] itself; of an ensemble, each of them."""
        members = tuple(SoftPrompt(prompt) for prompt in self.prompts)
        return members[0] if len(members) == 1 else Ensemble(members)

    def groups(self) -> list[Group]:
        """Each prompt by itself: no gradient of one member may shorten another's."""
        return [Group([prompt], is_clipped_alone=True) for prompt in self.prompts]

    def penalty(self) -> Tensor:
        """None: 0."""
        return torch.zeros((), device=self.prompts[0].device)

    def after_step(self, step: int, of: int) -> None:
        """Nothing."""

    def peft_config(self) -> dict[str, Any]:
        """A PROMPT_TUNING config, of each member. Its start is said to be random: no reader shall fetch a tokeniser."""
        return prompt_config(self.prompts[0])

    @torch.no_grad()
    def continue_from(self, effect: Effect | Ensemble) -> None:
        """Takes the prompts, of each member its own. Their number and lengths must be the same."""
        members = members_of(effect)
        found = [m.prompt for m in members if isinstance(m, SoftPrompt) and m.template is None]
        must_continue(self.spec, "PROMPT_TUNING" if len(found) == len(members) else type(members[0]).__name__)
        mine, theirs = ([tuple(prompt.shape) for prompt in prompts] for prompts in (self.prompts, found))
        if mine != theirs:
            raise ValueError(
                f"this job's prompts are of shape {mine}, the adapter's of {theirs}: they must be the same"
            )
        for prompt, begin in zip(self.prompts, found, strict=True):
            prompt.copy_(begin)


def prompt_config(prompt: Tensor) -> dict[str, Any]:
    """PROMPT_TUNING as HF PEFT reads it, of a prompt [P, H] that stands in front."""
    return {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": prompt.shape[0],
        "token_dim": prompt.shape[1],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }


def generator_of_member(generator: torch.Generator | None, member: int) -> torch.Generator | None:
    """What a member starts from: the first from generator, each other from a seed of its own that follows from it."""
    if member == 0:
        return generator
    seed = torch.initial_seed() if generator is None else generator.initial_seed()
    digest = hashlib.blake2b(f"{seed}/{member}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _random(
    spec: PromptTuningSpec, facts: BaseFacts, generator: torch.Generator | None, _: SoftPrompt | None
) -> nn.Parameter:
    return nn.Parameter(torch.empty(spec.num_virtual_tokens, facts.hidden).uniform_(-0.5, 0.5, generator=generator))


def _vocab(
    spec: PromptTuningSpec, facts: BaseFacts, generator: torch.Generator | None, _: SoftPrompt | None
) -> nn.Parameter:
    return nn.Parameter(_frequent_words(spec.num_virtual_tokens, facts, generator))


def _class_label(
    spec: PromptTuningSpec, facts: BaseFacts, generator: torch.Generator | None, _: SoftPrompt | None
) -> nn.Parameter:
    labels = torch.stack([_embeddings(words_of(facts, label), facts).mean(0) for label in spec.class_labels])
    rest = _frequent_words(spec.num_virtual_tokens - len(labels), facts, generator)
    return nn.Parameter(torch.cat([labels, rest]))


def _text(spec: PromptTuningSpec, facts: BaseFacts, _: torch.Generator | None, __: SoftPrompt | None) -> nn.Parameter:
    assert spec.prompt_tuning_init_text is not None  # the spec's own rule
    words = _embeddings(words_of(facts, spec.prompt_tuning_init_text), facts)
    return nn.Parameter(_tiled(words, spec.num_virtual_tokens))


def _adapter(
    spec: PromptTuningSpec, facts: BaseFacts, _: torch.Generator | None, start: SoftPrompt | None
) -> nn.Parameter:
    if start is None:
        raise ValueError(f"init_adapter {spec.init_adapter!r} is not at hand: prompt_tuning_init 'adapter' needs it")
    if start.prompt.shape[1] != facts.hidden:
        raise ValueError(
            f"init_adapter {spec.init_adapter!r} is {start.prompt.shape[1]} wide, this base model {facts.hidden}: "
            "it belongs to another base model"
        )
    return nn.Parameter(_tiled(start.prompt.detach().float().cpu(), spec.num_virtual_tokens))


_STARTS: dict[str, Callable[[PromptTuningSpec, BaseFacts, torch.Generator | None, SoftPrompt | None], nn.Parameter]] = {
    "random": _random,
    "vocab": _vocab,
    "class_label": _class_label,
    "text": _text,
    "adapter": _adapter,
}


def _frequent_words(count: int, facts: BaseFacts, generator: torch.Generator | None) -> Tensor:
    """Embeddings [count, H] of distinct words."""
    words = [i for i in range(min(FREQUENT, facts.vocabulary)) if i not in facts.specials]
    if len(words) < count:
        raise ValueError(f"the vocabulary has {len(words)} words to start from; num_virtual_tokens asks for {count}")
    drawn = torch.randperm(len(words), generator=generator)[:count].tolist()
    return _embeddings([words[i] for i in drawn], facts)


def _embeddings(ids: list[int], facts: BaseFacts) -> Tensor:
    """[T, H] fp32, a copy."""
    return facts.table[ids].float().cpu() * facts.table_scale


def _tiled(rows: Tensor, count: int) -> Tensor:
    """The first count of rows [n, H] that follow one another again and again: [count, H], a copy."""
    return rows[torch.arange(count) % len(rows)]
