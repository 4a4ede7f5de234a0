"""What one part of the claims finds: figures beside those expected, and the orderings that must hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean


@dataclass(frozen=True)
class Figure:
    """One number. group is its quantity and unit; figures of one group are drawn side by side."""

    group: str
    name: str
    measured: float
    expected: float | None = None  # as the design's own study found it; None where it names none


@dataclass(frozen=True)
class Check:
    """One ordering that must hold."""

    says: str
    by: float  # the distance to its bound; below 0 it does not hold
    is_strict: bool = False  # at 0 it does not hold either

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.by > 0 if self.is_strict else self.by >= 0


@dataclass(frozen=True)
class Finding:
    """All of one part."""

    claim: str
    figures: tuple[Figure, ...]
    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.holds for check in self.checks)


def at_most(says: str, value: float, bound: float) -> Check:
    """Holds where value <= bound."""
    return Check(says, bound - value)


def at_least(says: str, value: float, bound: float) -> Check:
    """Holds where value >= bound."""
    return Check(says, value - bound)


def ascending(says: str, values: Sequence[float]) -> Check:
    """Each is smaller than the next; by is the smallest step between two."""
    return Check(says, min(b - a for a, b in pairwise(values)), is_strict=True)


def mean(values: Sequence[float]) -> float:
    """Of some figures."""
    return fmean(values)
