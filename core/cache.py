"""Keys and values of rows that join and leave. A slot holds one row; a learned prefix is its first entries."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.effects import KVPrefix


@dataclass(eq=False)
class KVCache:
    """Slots of equal length, each contiguous, so that a decode step reads them where they lie."""

    keys: Tensor  # [L, S, K, T, D]
    values: Tensor  # [L, S, K, T, D]
    lengths: list[int] = field(init=False)  # S: how many entries of each slot are filled
    prefixes: list[KVPrefix | None] = field(init=False)  # S: the prefix each slot began with

    def __post_init__(self) -> None:
        self.lengths = [0] * self.slots
        self.prefixes = [None] * self.slots
        self._taken = [False] * self.slots

    @classmethod
    def for_model(cls, model: torch.nn.Module, slots: int, length: int) -> "KVCache":
        """An empty cache of so many slots, each of so many entries (prefix included).

        model: a RoutedModel, or the base model itself.
        """
        base = cast("PreTrainedModel", getattr(model, "base", model))
        config = base.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, slots, heads, length, width)
        # Zeros, not whatever memory held: masked entries take no part, but a NaN among them would.
        with torch.inference_mode(mode=False):
            return cls(*(torch.zeros(shape, dtype=base.dtype, device=base.device) for _ in range(2)))

    @property
    def slots(self) -> int:
        """How many rows fit."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """How many entries each slot has."""
        return self.keys.shape[3]

    def take(self) -> int | None:
        """The lowest free slot, now taken and empty; None if all are taken. Low slots keep the decode batch dense."""
        for slot, is_taken in enumerate(self._taken):
            if not is_taken:
                self._taken[slot] = True
                return slot
        return None

    def release(self, slot: int) -> None:
        """Free a slot. What it held stays in memory, unread, until its next row overwrites it."""
        if not self._taken[slot]:
            raise ValueError(f"slot {slot} is not taken: only a taken slot can be released")
        self._taken[slot], self.lengths[slot], self.prefixes[slot] = False, 0, None

    def room(self, slot: int, tokens: int) -> int:
        """How many entries a slot holds, once it is sure that so many more fit."""
        if not self._taken[slot]:
            raise ValueError(f"slot {slot} is not taken: take() says which slot a row may use")
        if self.lengths[slot] + tokens > self.length:
            raise ValueError(
                f"slot {slot} holds {self.lengths[slot]} of {self.length} entries: {tokens} more do not fit"
            )
        return self.lengths[slot]

    def put_prefix(self, slot: int, effect: KVPrefix) -> None:
        """Write a prefix as the first entries of an empty slot."""
        if self.lengths[slot]:
            raise ValueError(f"slot {slot} already holds {self.lengths[slot]} entries; a prefix goes before all others")
        layers, count, heads, width = effect.keys.shape
        mine = (self.keys.shape[0], self.keys.shape[2], self.keys.shape[4])
        if (layers, heads, width) != mine:
            raise ValueError(f"the prefix has (layers, heads, width) {(layers, heads, width)}, the cache {mine}")
        if count > self.length:
            raise ValueError(f"a prefix of {count} does not fit in a slot of {self.length}")
        with torch.no_grad():
            self.keys[:, slot, :, :count] = effect.keys.transpose(1, 2)
            self.values[:, slot, :, :count] = effect.values.transpose(1, 2)
        self.lengths[slot], self.prefixes[slot] = count, effect

    def append(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Write entries that were computed before behind those of a slot: [L, K, T, D] each, rotated for just there."""
        layers, heads, count, width = keys.shape
        first = self.room(slot, count)
        mine = (self.keys.shape[0], self.keys.shape[2], self.keys.shape[4])
        if (layers, heads, width) != mine:
            raise ValueError(f"the entries have (layers, heads, width) {(layers, heads, width)}, the cache {mine}")
        with torch.no_grad():
            self.keys[:, slot, :, first : first + count] = keys
            self.values[:, slot, :, first : first + count] = values
        self.lengths[slot] += count

    def entries(self, slot: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of filled entries where they lie, no copies: [L, K, count, D] each."""
        if not 0 <= first <= first + count <= self.lengths[slot]:
            raise ValueError(f"slot {slot} holds {self.lengths[slot]} entries, not {first} up to {first + count}")
        return self.keys[:, slot, :, first : first + count], self.values[:, slot, :, first : first + count]
