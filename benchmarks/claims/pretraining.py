"""The toy model itself: it does its tasks when told to, and cannot guess them."""

from pathlib import Path

from benchmarks.claims import toy
from benchmarks.claims.finding import Figure, Finding, at_least, at_most

CLAIM = "the toy model does a task that it is told, and guesses without"


def measure(cache: Path) -> Finding:
    """Pre-trains it if need be, and asks it."""
    base = toy.pretrained(cache)
    told, labels, untold = (toy.accuracy(base, head=head) for head in ("instruction", "labels", "none"))
    return Finding(
        CLAIM,
        (
            Figure("accuracy", "behind an instruction", told, 1.0),
            Figure("accuracy", "behind the labels", labels),
            Figure("accuracy", "behind nothing", untold, 0.14),
        ),
        (at_least("told >= .99", told, 0.99), at_most("untold <= .25", untold, 0.25)),
    )
