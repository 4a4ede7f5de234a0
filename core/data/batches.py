"""Token rows in memory, the order they are seen in, and how many go forward together: pure arithmetic.

A place in the data is three integers: seed, epoch, and how many rows of the epoch are done. Nothing else is needed to
go on from there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data.tokens import TokenRow
from core.specs.estimate import Largest, ScheduleSpec

ROWS_SIMULATED = 4_000_000  # of all epochs together: about a second of work


@dataclass(frozen=True, eq=False)
class Corpus:
    """All rows of a file end to end: 5 bytes a token and 20 a row, whatever their number."""

    ids: NDArray[np.int32]  # [N]
    learned: NDArray[np.bool_]  # [N]
    starts: NDArray[np.int64]  # [B + 1]
    lines: NDArray[np.int64]  # [B] of the file they came from
    classes: tuple[str, ...]  # that its classification rows name, in the order of their first row
    class_of: NDArray[np.int32]  # [B] each row's place in classes, -1 of a row that is no classification row

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> "Corpus":
        """Takes the rows one by one, so that they need not be in memory twice."""
        ids, learned = bytearray(), bytearray()
        starts, lines = [0], []
        classes: dict[str | None, int] = {None: -1}
        class_of = []
        for row in rows:
            ids += row.ids.astype(np.int32, copy=False).tobytes()
            learned += row.learned.tobytes()
            starts.append(starts[-1] + len(row.ids))
            lines.append(row.line)
            class_of.append(classes.setdefault(row.label, len(classes) - 1))
        return cls(
            np.frombuffer(ids, np.int32),
            np.frombuffer(learned, np.bool_),
            np.array(starts, np.int64),
            np.array(lines, np.int64),
            tuple(name for name in classes if name is not None),
            np.array(class_of, np.int32),
        )

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, place: int) -> TokenRow:
        """A view, not a copy. Raises IndexError."""
        if not 0 <= place < len(self):
            raise IndexError(f"row {place} of a corpus of {len(self)}")
        cut = slice(self.starts[place], self.starts[place + 1])
        of_class = int(self.class_of[place])
        label = None if of_class < 0 else self.classes[of_class]
        return TokenRow(int(self.lines[place]), self.ids[cut], self.learned[cut], label)

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[place] for place in range(len(self)))

    def rows_of(self, place: int) -> tuple[TokenRow, ...]:
        """What is learned from together: of a plain corpus one row. Raises IndexError."""
        return (self[place],)

    @property
    def chosen(self) -> "Corpus":
        """The rows that a model is to say: of a plain corpus all of them."""
        return self

    @property
    def learned_tokens(self) -> int:
        """How many tokens are learned in one epoch."""
        return int(self.learned.sum())


def order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The places of n rows in the order that an epoch (from 0) sees them: [n]. A million rows take half a second.

    A pure function. It ranks raw numbers of Philox, whose stream numpy promises never to change, as it does not of its
    own permutation(): so a run stopped under one numpy goes on under the next.
    """
    drawn = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(np.atleast_1d(drawn), kind="stable")


def micro_batches(rows: Sequence[TokenRow], tokens_per_batch: int) -> list[list[TokenRow]]:
    """Cuts rows, in order, into batches of at most so many tokens. A row longer than that goes alone."""
    remaining = iter(rows)
    return [[next(remaining) for _ in range(count)] for count in cuts([len(row.ids) for row in rows], tokens_per_batch)]


def cuts(tokens: Iterable[int], tokens_per_batch: int) -> list[int]:
    """How many things of so many tokens each, in order, go into each batch. One too large for a batch goes alone."""
    counts: list[int] = []
    room = 0
    for size in tokens:
        if not counts or size > room:
            counts.append(0)
            room = tokens_per_batch
        counts[-1] += 1
        room -= size
    return counts


def shares(tokens: Sequence[int], processes: int) -> list[list[int]]:
    """Deals things of so many tokens each to processes: of each process the places of its own, in order.

    The largest goes first, to whoever has fewest tokens, of equals to the first in line. A pure function: who deals
    again, deals the same. A process gets nothing where there are fewer things than processes.
    """
    dealt: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for place in sorted(range(len(tokens)), key=lambda place: -tokens[place]):
        lightest = loads.index(min(loads))
        dealt[lightest].append(place)
        loads[lightest] += tokens[place]
    return [sorted(share) for share in dealt]


def largest(lengths: NDArray[np.int64], learned: NDArray[np.int64], schedule: ScheduleSpec) -> Largest:
    """The largest micro-batch of a run whose rows have so many tokens [B], so many of them learned [B].

    Semantics: the rows of every step as Run.next_rows takes them, cut as the trainer cuts them. Of a run of more than
    ROWS_SIMULATED rows only its first epochs are gone through, the first always. Of pairs, two neighbours are one
    example: it counts twice in a forward's tokens, since what it is held to reads it too, but only once is it kept.
    """
    longest, squares, times = int(lengths.max(initial=0)), lengths**2, 1
    if schedule.is_of_pairs:
        lengths, learned, squares = (figures.reshape(-1, 2).sum(1) for figures in (lengths, learned, squares))
        times = 2
    best = np.zeros(3, np.int64)
    epochs = max(1, min(schedule.n_epochs, ROWS_SIMULATED // max(len(lengths), 1)))
    for epoch in range(epochs):
        places = order(len(lengths), schedule.seed, epoch)
        for start in range(0, len(lengths), schedule.batch_size):
            turn = places[start : start + schedule.batch_size]
            first = 0
            for count in cuts((times * lengths[turn]).tolist(), schedule.tokens_per_batch):
                batch = turn[first : first + count]
                of_batch = (lengths[batch].sum(), learned[batch].sum(), squares[batch].sum())
                best = np.maximum(best, of_batch)
                first += count
    tokens, most_learned, most_squares = (int(figure) for figure in best)
    return Largest(tokens=tokens, learned=most_learned, squares=most_squares, longest_row=longest)
