"""What a frozen model makes of words, layer by layer, and of hidden states that a prefix stands for.

Knows no method: methods are handed read and project as two facts of the base. Both go through the base's own attention
modules, whatever these do to a key (bias, norm, rotation), so there is no arithmetic of a family here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.attention import RaggedBatch
from core.base.facts import BaseFacts, Reading
from core.cache import KVCache
from core.model import RoutedModel, Rows
from core.routing import Routing

# The attention module of a layer, by the end of its name, in every family of core.model.FAMILIES.
ATTENTION = ("self_attn", "attn", "attention")


@dataclass(frozen=True, eq=False)
class _Call:
    """One layer's attention, called once."""

    module: nn.Module
    hidden: Tensor  # [1, P, H]
    others: dict[str, Any]  # all that a layer hands its attention beside hidden states and the batch


@dataclass(eq=False)
class _Reader:
    """Reads with one model. Calls are kept by number of words: what they hold depends on nothing else."""

    model: RoutedModel
    attentions: list[nn.Module] = field(init=False)  # L
    _calls: dict[int, list[_Call]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.model.base.base_model.named_modules()
        self.attentions = [module for name, module in named if name.rpartition(".")[2] in ATTENTION]
        layers = self.model.base.config.num_hidden_layers
        if len(self.attentions) != layers:
            family = self.model.base.config.model_type
            raise ValueError(
                f"the attention layers of a {family!r} are not known: {len(self.attentions)} found, {layers} expected"
            )

    def read(self, ids: Sequence[int]) -> Reading:
        """What the model makes of these words. Raises ValueError where they are more than it can attend to."""
        cache, calls = self._recorded(ids)
        hidden = torch.cat([call.hidden for call in calls])
        return Reading(*_contents(cache), hidden.float())

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [L, P, H] that enter each layer's attention, to its keys and values [L, P, K, D]."""
        count = hidden.shape[1]
        if count not in self._calls:
            self._calls[count] = self._recorded([0] * count)[1]  # any words do: only where they stand is kept
        starts = (0, count)
        # The cache takes the keys and values where attention gets them. Written in place, they keep their gradients.
        cache = KVCache.for_model(self.model, slots=1, length=count)
        cache.take()
        batch = RaggedBatch(starts, (), cache, (0,), (0,))
        with self.model.bare(starts):
            for call, states in zip(self._calls[count], hidden, strict=True):
                call.module(hidden_states=states[None].to(self.model.dtype), graft_batch=batch, **call.others)
        return _contents(cache)

    def _recorded(self, ids: Sequence[int]) -> tuple[KVCache, list[_Call]]:
        """The bare model run over these words: its cache, and how each attention was called."""
        cache = KVCache.for_model(self.model, slots=1, length=len(ids))
        rows = Rows.of([list(ids)], slots=[cache.take() or 0], device=self.model.device)
        calls: list[_Call] = []
        hooks = [self._record(module, calls) for module in self.attentions]
        try:
            with self.model.wearing(Routing.of_rows([None])):
                self.model(rows, cache)
        finally:
            for hook in hooks:
                hook.remove()
        return cache, calls

    def _record(self, module: nn.Module, calls: list[_Call]) -> RemovableHandle:
        def record(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            others = {name: value for name, value in named.items() if name not in ("hidden_states", "graft_batch")}
            calls.append(_Call(module, args[0] if args else named["hidden_states"], others))

        return module.register_forward_pre_hook(record, with_kwargs=True)


def with_reading(facts: BaseFacts, model: RoutedModel) -> BaseFacts:
    """Facts of the model's base that can also read and project. Raises ValueError for a family not known here."""
    reader = _Reader(model)
    return replace(facts, read=reader.read, project=reader.project)


def _contents(cache: KVCache) -> tuple[Tensor, Tensor]:
    """Keys and values [L, P, K, D] of the only slot."""
    keys, values = (t[:, 0].transpose(1, 2).float() for t in (cache.keys, cache.values))
    return keys, values
