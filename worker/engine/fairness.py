"""Whose turn it is: a counter of service for each name, the smallest next. Pure arithmetic: no torch, no clock.

Virtual token counters, Sheng et al. 2024, arXiv:2401.00588, algorithm 2: a name's counter grows by what it is served,
divided by its weight. A name that comes back is lifted to where those who waited meanwhile stand: nobody saves credit.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

NAMES = 4096  # counters kept at most, but for those of names with rows

K = TypeVar("K", bound=Hashable)


class Ledger(Generic[K]):
    """The counters of one level: of tenants, or of classes of priority."""

    def __init__(self) -> None:
        self._counters: dict[K, float] = {}
        self._floor = 0.0  # where the last to leave the queue stood: who comes to an empty queue begins there

    def __len__(self) -> int:
        return len(self._counters)

    def of(self, name: K) -> float:
        """Its counter."""
        return self._counters.get(name, self._floor)

    def join(self, name: K, others: Iterable[K]) -> None:
        """A name with no row in the queue gets one. others: those that have rows there."""
        floor = min((self._counters[other] for other in others), default=self._floor)
        self._counters[name] = max(self._counters.get(name, floor), floor)

    def charge(self, name: K, service: float) -> None:
        """It was served so much; negative gives back what was charged and not needed."""
        self._counters[name] = self.of(name) + service

    def leave(self, name: K) -> None:
        """Its last row has left the queue."""
        self._floor = self.of(name)

    def forget(self, has_rows: Callable[[K], bool]) -> None:
        """Keep the counters of those with rows, and of the others the NAMES largest: the smallest would be lifted."""
        if len(self._counters) <= NAMES:
            return
        idle = sorted((name for name in self._counters if not has_rows(name)), key=self.of)
        for name in idle[: len(self._counters) - NAMES]:
            del self._counters[name]

    def clear(self) -> None:
        """Nobody waits or runs: all begin anew."""
        self._counters.clear()
        self._floor = 0.0
