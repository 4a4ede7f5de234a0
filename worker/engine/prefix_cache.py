"""Keys and values of prompts that ran before, for rows that begin with the same tokens. Bounded; the oldest go first.

They are kept in blocks of BLOCK tokens. A block is known by its link: the SHA-256 of the link before it and of its own
tokens, virtual ones included. The first link is the root, and says whose tokens these are: the base model in its
precision, the tenant, the adapter by the digest of its content, and the member of an ensemble. So rows of two tenants,
of two adapters or of an adapter's old and new content have no block in common, whatever their tokens are.
"""

import hashlib
import json
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.cache import KVCache

BLOCK = 16  # tokens


@dataclass(frozen=True, slots=True)
class Root:
    """Whose tokens a row's are."""

    tenant: str
    adapter: str | None = None  # digest of its content
    member: int = 0  # of an ensemble

    def link(self, base: str) -> bytes:
        """The link before the first block. base: the base model and its precision."""
        return hashlib.sha256(json.dumps([base, self.tenant, self.adapter, self.member]).encode()).digest()


@dataclass(slots=True)
class _Block:
    place: int
    adapter: str | None


class PrefixCache:
    """Blocks beside the slots of a KVCache, which they are copied out of and into."""

    def __init__(self, cache: KVCache, *, memory_bytes: int, base: str) -> None:
        """memory_bytes: of all blocks at most; less than one block's switches it off. base: see Root.link()."""
        self._cache, self._base = cache, base
        layers, _, heads, _, width = cache.keys.shape
        each = 2 * layers * heads * BLOCK * width * cache.keys.element_size()
        self.size = memory_bytes // each
        # Asked for at once: on a CPU the system gives memory when it is first written to.
        with torch.inference_mode(mode=False):
            shape = (self.size, layers, heads, BLOCK, width)
            self._keys, self._values = (
                torch.empty(shape, dtype=cache.keys.dtype, device=cache.keys.device) for _ in range(2)
            )
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()  # least recently used first
        self._free = list(range(self.size - 1, -1, -1))
        self._block_bytes = each
        self.hits, self.misses, self.evictions = 0, 0, 0  # tokens, tokens, blocks

    def told(self) -> dict[str, int]:
        """For people and meters. hits, misses: tokens of prompts; evictions: blocks."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
            "bytes": len(self._blocks) * self._block_bytes,
            "memory_bytes": self.size * self._block_bytes,
        }

    def links(self, root: Root, ids: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
        """Of each whole block of ids. known: the links of its first blocks, if they were asked for before."""
        if not self.size:
            return []
        found = list(known)
        link = found[-1] if found else root.link(self._base)
        for start in range(len(found) * BLOCK, len(ids) - BLOCK + 1, BLOCK):
            link = hashlib.sha256(link + struct.pack(f"<{BLOCK}q", *ids[start : start + BLOCK])).digest()
            found.append(link)
        return found

    def reuse(self, slot: int, links: Sequence[bytes], tokens: int) -> int:
        """Copies into a slot what is known of a row's next blocks. How many tokens that is, always fewer than all.

        links: of the row's whole blocks that are not in the slot. tokens: all that are not in the slot.
        """
        blocks: list[_Block] = []
        for link in links[: (tokens - 1) // BLOCK]:
            if link not in self._blocks:
                break
            blocks.append(self._blocks[link])
        if blocks:
            self._touch(links[: len(blocks)])
            places = torch.tensor([block.place for block in blocks], device=self._keys.device)
            self._cache.append(slot, _joined(self._keys[places]), _joined(self._values[places]))
        return len(blocks) * BLOCK

    def count(self, hits: int, misses: int) -> None:
        """A row began to run: so many of its tokens need not, and so many must."""
        self.hits += hits
        self.misses += misses

    def keep(self, slot: int, first: int, links: Sequence[bytes], adapter: str | None) -> None:
        """Copies a row's blocks out of its slot, those that are not yet here. first: entry of its first token."""
        links = links[: self.size]
        self._touch(links)  # so that a block does not make room by pushing out the one before it
        new = [i for i, link in enumerate(links) if link not in self._blocks]
        if not new:
            return
        places = torch.tensor([self._place() for _ in new], device=self._keys.device)
        wanted = torch.tensor(new, device=self._keys.device)
        keys, values = self._cache.entries(slot, first, len(links) * BLOCK)
        with torch.no_grad():
            self._keys[places], self._values[places] = _parted(keys)[wanted], _parted(values)[wanted]
        for i, place in zip(new, places.tolist(), strict=True):
            self._blocks[links[i]] = _Block(place, adapter)
        self._touch(links)

    def forget(self, adapters: Iterable[str]) -> None:
        """Adapters that are no more: their blocks are free."""
        gone = set(adapters)
        for link in [link for link, block in self._blocks.items() if block.adapter in gone]:
            self._free.append(self._blocks.pop(link).place)

    def _touch(self, links: Sequence[bytes]) -> None:
        """A block without the one before it is of no use, so the first of a row leave last."""
        for link in reversed(links):
            if link in self._blocks:
                self._blocks.move_to_end(link)

    def _place(self) -> int:
        if self._free:
            return self._free.pop()
        self.evictions += 1
        return self._blocks.popitem(last=False)[1].place


def _joined(blocks: Tensor) -> Tensor:
    """Blocks [n, L, K, BLOCK, D] as entries [L, K, n * BLOCK, D]."""
    return blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _parted(entries: Tensor) -> Tensor:
    """Entries [L, K, n * BLOCK, D] as blocks [n, L, K, BLOCK, D]."""
    layers, heads, _, width = entries.shape
    return entries.view(layers, heads, -1, BLOCK, width).permute(2, 0, 1, 3, 4)
