"""What the runs of a turn learn from: pieces, cut into micro-batches, dealt to processes. No forward runs here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.data.batches import cuts, shares
from core.data.tokens import TokenRow
from core.effects import Effect, Ensemble, members_of
from core.learning import Worn, guarded
from core.preferences import Preference
from core.routing import dropout_key
from core.run import Run
from core.shortage import smaller


@dataclass(frozen=True, eq=False)
class Piece:
    """What is learned from together, one row or a pair, and whose it is."""

    run: Run
    place: int  # in its run's corpus
    rows: tuple[TokenRow, ...]

    @property
    def tokens(self) -> int:
        """Of its rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def cost(self) -> int:
        """Tokens that go forward for it: those of a pair twice, once as what it is held to reads them."""
        return 2 * self.tokens if self.run.preference else self.tokens

    @property
    def weight(self) -> int:
        """Its part of the denominator of its run's loss: learned tokens, or one for a pair."""
        return 1 if self.run.preference else sum(int(row.learned.sum()) for row in self.rows)

    @property
    def key(self) -> int:
        """Of its rows' dropout and noise: the same whichever process they are dealt to."""
        return dropout_key(self.run.spec.seed, self.run.step, self.place)


def pieces_of(runs: Iterable[Run]) -> list[Piece]:
    """What the next step of each run learns from; those of one run are neighbours."""
    return [Piece(run, place, run.corpus.rows_of(place)) for run in runs for place in run.next_rows()]


def weights_of(pieces: Iterable[Piece]) -> dict[Run, int]:
    """The denominator of each run's loss, over all its pieces of the turn."""
    weights: dict[Run, int] = {}
    for piece in pieces:
        weights[piece.run] = weights.get(piece.run, 0) + piece.weight
    return weights


def micro_batches_of(pieces: Sequence[Piece], processes: int = 1) -> list[list[list[Piece]]]:
    """Of each process its micro-batches. Everyone gets about as many tokens, and no micro-batch has more than fit."""
    budget = min(piece.run.spec.tokens_per_batch // piece.run.spec.method.members for piece in pieces)
    dealt = []
    for share in shares([piece.cost for piece in pieces], processes):
        mine = [pieces[place] for place in share]
        remaining = iter(mine)
        dealt.append([[next(remaining) for _ in range(n)] for n in cuts([p.cost for p in mine], budget)])
    return dealt


def shrink(pieces: Sequence[Piece], processes: int) -> bool:
    """Whether the micro-batches of these will be smaller: each run's tokens of a forward are cut, where it has more."""
    batches = [batch for share in micro_batches_of(pieces, processes) for batch in share]
    tokens = smaller([[piece.cost for piece in batch] for batch in batches])
    if tokens is None:
        return False
    for run in {piece.run for piece in pieces}:
        run.forward_at_most(tokens * run.spec.method.members)
    return True


def effects_of(pieces: Iterable[Piece]) -> dict[Run, Effect | Ensemble]:
    """What the methods of these pieces' runs make now, live; without a run whose method failed."""
    runs = dict.fromkeys(piece.run for piece in pieces)
    return {run: effect for run in runs if (effect := guarded(run, run.method.effect))}


def worn_by(pieces: Iterable[Piece], effects: Mapping[Run, Effect | Ensemble]) -> list[Worn[Run]]:
    """The rows of one micro-batch as they go forward; none of a run without an effect."""
    # A row goes forward once for each member of an ensemble: each then has the gradient it would have by itself.
    return [
        Worn(piece.run, piece.key, row, member, reference, piece.run.spec.neftune_alpha or 0.0)
        for piece in pieces
        if piece.run in effects
        for member, reference in held(effects[piece.run], piece.run.preference)
        for row in piece.rows
    ]


def held(effect: Effect | Ensemble, preference: Preference | None) -> list[tuple[Effect, Effect | None]]:
    """What a run's rows wear, each with what it is held to."""
    members = members_of(effect)
    references = preference.references(len(members)) if preference else (None,) * len(members)
    return list(zip(members, references, strict=True))
