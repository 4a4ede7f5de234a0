"""All that a method may know of a frozen model: its shape, its sites, its embeddings. Knows no method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from core.base.nf4 import Linear4bit, dense_weight
from core.base.words import Words


@dataclass(frozen=True)
class Site:
    """A layer that a method may change, by its name in the model. A Conv1D keeps its weight as [I, O].

    A table of embeddings is one too: token ids go in, so width_in is V, and it keeps its weight as [V, H].
    """

    name: str
    width_in: int
    width_out: int
    is_conv1d: bool = False
    is_table: bool = False

    def answers(self, name: str) -> bool:
        """Whether its name is this, or ends with "." and this: PEFT's rule."""
        return self.name == name or self.name.endswith("." + name)


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
    table: Tensor = field(repr=False)  # [V, H] the token embeddings; not to be changed
    table_site: Site  # where they stand
    # Linear site -> its weight, dequantised: [O, I] fp32, on its device.
    weight: Callable[[str], Tensor] = field(repr=False)
    table_scale: float = 1.0  # what the model multiplies an embedding by as it looks it up
    specials: frozenset[int] = field(default=frozenset(), repr=False)  # ids that stand for no text
    encode: Callable[[str], list[int]] | None = field(default=None, repr=False)  # of text within a row
    # Both run the model, so whoever holds it supplies them: core/reading.py.
    read: Callable[[Sequence[int]], Reading] | None = field(default=None, repr=False)
    # Hidden states [L, P, H] -> keys and values [L, P, K, D], as Reading has them; differentiable.
    project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def sites_named(self, target_modules: str | Sequence[str], *, with_table: bool = False) -> tuple[Site, ...]:
        """The sites whose name is, or ends with "." and, one of these; "all-linear" names all.

        with_table: the table of embeddings may be named too. "all-linear" never means it.

        Raises:
            ValueError: a name that no site answers to.

        """
        if target_modules == "all-linear":
            return self.sites
        wanted = (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
        sites = (*self.sites, self.table_site) if with_table else self.sites
        missing = [name for name in wanted if not any(site.answers(name) for site in sites)]
        if missing or not wanted:
            known = sorted({site.name.rpartition(".")[2] for site in sites})
            raise ValueError(f"no layer named {sorted(missing)}; this base model has {known}")
        return tuple(site for site in sites if any(site.answers(name) for name in wanted))


def words_of(facts: BaseFacts, text: str) -> list[int]:
    """The ids of a text. Raises ValueError where there is no tokeniser, or the text is no word to it."""
    if facts.encode is None:
        raise ValueError(f"this base model has no tokeniser to read {text[:40]!r} with")
    ids = facts.encode(text)
    if not ids:
        raise ValueError(f"{text[:40]!r} is no word to this base model's tokeniser")
    return ids


def facts_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> BaseFacts:
    """Reads them off an opened model. The model is left unchanged."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    table = embeddings.weight.detach()  # [V, H]
    name = next(name for name, module in model.named_modules() if module is embeddings)
    modules = linears_of(model)  # the modules themselves: a RoutedModel will stand others in their places
    return BaseFacts(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        context=config.max_position_embeddings,
        vocabulary=table.shape[0],
        specials=frozenset() if tokenizer is None else frozenset(tokenizer.all_special_ids),
        sites=tuple(site_of(name, module) for name, module in modules.items()),
        table=table,
        table_site=Site(name, table.shape[0], table.shape[1], is_table=True),
        weight=lambda name: dense_weight(modules[name]),
        table_scale=float(getattr(embeddings, "scalar_embed_scale", 1.0)),
        encode=None if tokenizer is None else _encoder(tokenizer),
    )


def _encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], list[int]]:
    """Made when it is first wanted: of a large vocabulary that takes a second, and few methods want it."""
    words = cache(lambda: Words(tokenizer))
    return lambda text: words().within(text)


def linears_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer but the output head, by its name: in 16 bits, as a Conv1D, or in 4 bits."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | Linear4bit) and module is not head
    }


def site_of(name: str, module: nn.Module) -> Site:
    """What a method may know of a linear layer."""
    match module:
        case Conv1D():
            return Site(name, module.nx, module.nf, is_conv1d=True)
        case Linear4bit(is_conv1d=is_conv1d):
            return Site(name, module.in_features, module.out_features, is_conv1d=is_conv1d)
        case nn.Linear():
            return Site(name, module.in_features, module.out_features)
    raise TypeError(f"{name}: {type(module).__name__} is no linear layer")
