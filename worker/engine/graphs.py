"""Decode steps on record: which of them serves how many rows, and when one is void. No torch, no device.

Steps are recorded for a few numbers of rows, and a batch takes the least that holds it. What a recorded step reads from
tensors may change freely: which tokens, which slots, which adapters and how long the rows are. It is void once a
tensor that it reads has moved: when the pool of adapters has grown or serves a layer for the first time, or an adapter
has more pages than its table. A step is recorded when the same form comes a second time, for recording takes as long as
tens of steps.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Recorded = TypeVar("Recorded")

EVERY = 8  # rows, from as many on
WORTH = 2  # how often a form must come with one stamp before it is recorded


@dataclass(frozen=True)
class Form:
    """What is fixed in a recorded step."""

    rows: int
    is_bare: bool  # no row wears a low-rank adapter


def form_of(rows: int, most: int, *, is_bare: bool) -> Form:
    """The least of 1, 2, 4, 8, 16, 24, 32 and so on that holds so many rows, in an engine of at most so many."""
    if not 0 < rows <= most:
        raise ValueError(f"a step has 1 to {most} rows, not {rows}")
    size = -(-rows // EVERY) * EVERY if rows > EVERY else 1 << (rows - 1).bit_length()
    return Form(min(size, most), is_bare)


@dataclass
class Graphs(Generic[Recorded]):
    """What was recorded, each with the stamp of what it reads."""

    record: Callable[[Form], Recorded]
    _kept: dict[Form, tuple[Hashable, Recorded]] = field(default_factory=dict)
    _seen: dict[Form, tuple[Hashable, int]] = field(default_factory=dict)
    recorded: int = 0

    def find(self, form: Form, stamp: Hashable) -> Recorded | None:
        """A recorded step that may run now, recorded just now if that is worth it; None: run it as it is.

        stamp: of the tensors that the step reads. A step of another stamp is forgotten before one is recorded anew.
        """
        before, kept = self._kept.get(form, (None, None))
        if kept is not None and before == stamp:
            return kept
        self._kept.pop(form, None)
        last, times = self._seen.get(form, (None, 0))
        self._seen[form] = (stamp, times + 1 if last == stamp else 1)
        if self._seen[form][1] < WORTH:
            return None
        made = self.record(form)
        self._kept[form] = (stamp, made)
        self.recorded += 1
        return made
