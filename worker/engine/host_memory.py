"""Adapters in host memory beside a device that has memory of its own: the tier between disk and device.

What leaves the device stays here, ready to be copied back: no zip is opened, nothing is cast or folded again. On a CPU
the two memories are one, and this tier is not there.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch

from core.effects import Effect, Ensemble
from core.routing import resident, tensors_of


class HostMemory:
    """A loader before a loader. Called from the threads that load; the least recently asked for goes first."""

    def __init__(self, load: Callable[[str], Effect | Ensemble], *, device: torch.device, memory_bytes: int) -> None:
        """load: digest -> serving form on the device."""
        self._load, self._device, self._memory_bytes = load, device, memory_bytes
        self._guard = threading.Lock()
        self._held: OrderedDict[str, Effect | Ensemble] = OrderedDict()
        self._size_bytes = 0

    def __call__(self, digest: str) -> Effect | Ensemble:
        """The serving form on the device, copied from here if it is here."""
        with self._guard:
            held = self._held.get(digest)
            if held is not None:
                self._held.move_to_end(digest)
        if held is not None:
            return _moved(held, self._device)
        effect = self._load(digest)
        self._hold(digest, _moved(effect, torch.device("cpu")))
        return effect

    @property
    def size_bytes(self) -> int:
        """Of all that is held."""
        return self._size_bytes

    def has(self, digest: str) -> bool:
        """Whether it is here."""
        return digest in self._held

    def names(self) -> list[str]:
        """What is here."""
        with self._guard:
            return list(self._held)

    def forget(self, digests: Iterable[str]) -> None:
        """Adapters that were deleted."""
        with self._guard:
            for digest in digests:
                self._drop(digest)

    def _hold(self, digest: str, effect: Effect | Ensemble) -> None:
        needed = _size(effect)
        if needed > self._memory_bytes:
            return
        with self._guard:
            self._drop(digest)
            while self._size_bytes + needed > self._memory_bytes:
                self._drop(next(iter(self._held)))
            self._held[digest] = effect
            self._size_bytes += needed

    def _drop(self, digest: str) -> None:
        if digest in self._held:
            self._size_bytes -= _size(self._held.pop(digest))


def _moved(effect: Effect | Ensemble, device: torch.device) -> Effect | Ensemble:
    """A copy there. What was folded and cast once keeps its bits."""
    if isinstance(effect, Ensemble):
        return Ensemble(tuple(resident(member, device=device, dtype=_dtype(member)) for member in effect.members))
    return resident(effect, device=device, dtype=_dtype(effect))


def _dtype(effect: Effect) -> torch.dtype:
    return next((t.dtype for t in tensors_of(effect)), torch.float32)


def _size(effect: Effect | Ensemble) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_of(effect))
