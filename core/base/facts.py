"""All that a method may know of a frozen model: its shape, its sites, its embeddings. Knows no method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Encoder(Protocol):
    """As much of a tokeniser as a method needs."""

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that stand for no text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text."""


@dataclass(frozen=True)
class Site:
    """A linear layer that a method may change, by its name in the model. A Conv1D keeps its weight as [I, O]."""

    name: str
    width_in: int
    width_out: int
    is_conv1d: bool = False


@dataclass(frozen=True, eq=False)
class Reading:
    """What a frozen model makes of P words that stand at positions 0 to P - 1. In fp32, without gradients."""

    keys: Tensor  # [L, P, K, D] as they enter the cache: rotated, where the base rotates
    values: Tensor  # [L, P, K, D]
    hidden: Tensor  # [L, P, H] what enters each layer's attention: after the layer's norm


@dataclass(frozen=True)
class BaseFacts:
    """The shape of one base model, in the letters of core/effects.py."""

    hidden: int  # H
    layers: int  # L
    kv_heads: int  # K
    head_width: int  # D
    context: int  # tokens of the longest row it was made for
    vocabulary: int  # V
    sites: tuple[Site, ...]  # every Linear and Conv1D but the output head
    embedding: str  # the name of the module that holds the table
    table: Tensor = field(repr=False)  # [V, H] the token embeddings; not to be changed
    specials: frozenset[int] = field(default=frozenset(), repr=False)  # ids that stand for no text
    encode: Callable[[str], list[int]] | None = field(default=None, repr=False)  # text -> ids, without special tokens
    # Both run the model, so whoever holds it supplies them: core/reading.py.
    read: Callable[[Sequence[int]], Reading] | None = field(default=None, repr=False)
    # Hidden states [L, P, H] -> keys and values [L, P, K, D], as Reading has them; differentiable.
    project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def sites_named(self, target_modules: str | Sequence[str]) -> tuple[Site, ...]:
        """The sites whose name is, or ends with "." and, one of these; "all-linear" names all.

        Raises:
            ValueError: a name that no site answers to.

        """
        if target_modules == "all-linear":
            return self.sites
        wanted = (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
        missing = [name for name in wanted if not any(_answers(site, name) for site in self.sites)]
        if missing or not wanted:
            known = sorted({site.name.rpartition(".")[2] for site in self.sites})
            raise ValueError(f"no layer named {sorted(missing)}; this base model has {known}")
        return tuple(site for site in self.sites if any(_answers(site, name) for name in wanted))


def words_of(facts: BaseFacts, text: str) -> list[int]:
    """The ids of a text. Raises ValueError where there is no tokeniser, or the text is no word to it."""
    if facts.encode is None:
        raise ValueError(f"this base model has no tokeniser to read {text[:40]!r} with")
    ids = facts.encode(text)
    if not ids:
        raise ValueError(f"{text[:40]!r} is no word to this base model's tokeniser")
    return ids


def facts_of(model: PreTrainedModel, tokenizer: Encoder | None = None) -> BaseFacts:
    """Reads them off an opened model. The model is left unchanged."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    table = embeddings.weight.detach()  # [V, H]
    return BaseFacts(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        context=config.max_position_embeddings,
        vocabulary=table.shape[0],
        sites=_sites(model),
        embedding=next(name for name, module in model.named_modules() if module is embeddings),
        table=table,
        specials=frozenset() if tokenizer is None else frozenset(tokenizer.all_special_ids),
        encode=None if tokenizer is None else lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


def _sites(model: PreTrainedModel) -> tuple[Site, ...]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    sites = []
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            sites.append(Site(name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            sites.append(Site(name, module.weight.shape[0], module.weight.shape[1], is_conv1d=True))
    return tuple(sites)


def _answers(site: Site, name: str) -> bool:
    return site.name == name or site.name.endswith("." + name)
