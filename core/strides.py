"""How far each run goes in a turn: its whole step or, beside a smaller one's, a part of it. No forward runs here.

A step that is much larger than the smallest one under way is made in several turns, so that no run waits for a bigger
one; its gradients add up, divided from the first turn on by what all its rows weigh. A run by itself makes its step in
one turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from core.data.batches import cuts
from core.pieces import Piece, pieces_of, weights_of
from core.run import Run
from core.score import Score

FAIR = 2  # the smallest step so many times is what a larger one may take of a turn; or else one forward


class Stride:
    """One step of a run, under way."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._pieces = pieces_of([run])  # that are still to be learned from
        self._first = 0
        self.weight = weights_of(self._pieces)[run]
        self.tokens = sum(piece.tokens for piece in self._pieces)
        self.cost = sum(map(_cost, self._pieces))
        self.score = Score()
        self.seconds = 0.0  # of the turns so far

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to learn from, or its run is at its end."""
        return self._first == len(self._pieces) or self.run.error is not None

    def part(self, room: int) -> list[Piece]:
        """What it learns from next, of at most so much cost, but at least one piece."""
        ahead = self._pieces[self._first :]
        return ahead[: cuts(map(_cost, ahead), room)[0]]

    def went(self, pieces: int, score: Score) -> None:
        """That so many of its pieces were learned from."""
        self._first += pieces
        self.score = self.score.joined(score)


@contextmanager
def under_way() -> Iterator[dict[Run, Stride]]:
    """Steps that are begun. What is begun at the end is given up, and no gradient of it left."""
    begun: dict[Run, Stride] = {}
    try:
        yield begun
    finally:
        _give_up(begun)


def strides_of(runs: Sequence[Run], begun: dict[Run, Stride]) -> list[Stride]:
    """Of each run the step that it is at, begun where it is not; those of other runs are given up."""
    _give_up({run: stride for run, stride in begun.items() if run not in runs})
    strides = [begun.get(run) or Stride(run) for run in runs]
    begun.clear()
    begun.update({stride.run: stride for stride in strides})
    return strides


def parts_of(strides: Sequence[Stride]) -> list[list[Piece]]:
    """What each learns from in this turn."""
    room = max(
        FAIR * min(stride.cost for stride in strides), min(stride.run.spec.tokens_per_batch for stride in strides)
    )
    return [stride.part(stride.cost if len(strides) == 1 else room) for stride in strides]


def _give_up(begun: Mapping[Run, Stride]) -> None:
    for run in begun:
        run.optimiser.zero_grad()


def _cost(piece: Piece) -> int:
    return piece.cost * piece.run.spec.method.members
