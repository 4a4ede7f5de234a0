"""All that a method may know of a frozen model: its shape, its sites, its embeddings. Knows no method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.base.nf4 import Linear4bit


class Encoder(Protocol):
    """As much of a tokeniser as a method needs."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text."""


@dataclass(frozen=True)
class Site:
    """A linear layer that a method may change, by its name in the model. A Conv1D keeps its weight as [I, O]."""

    name: str
    width_in: int
    width_out: int
    is_conv1d: bool = False


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
    encode: Callable[[str], list[int]] | None = field(default=None, repr=False)  # text -> ids, without special tokens

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
        sites=tuple(site_of(name, module) for name, module in linears_of(model).items()),
        table=table,
        encode=None if tokenizer is None else lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


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


def _answers(site: Site, name: str) -> bool:
    return site.name == name or site.name.endswith("." + name)
