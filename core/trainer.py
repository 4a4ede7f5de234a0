"""Runs in step: each turn takes the next rows of every run, learns from all of them at once, and steps each run alone.

One job is the case of one run. The rows of a turn are cut into micro-batches that fit; each goes forward and backward
once. A run's loss is the sum over its learned tokens divided by the learned tokens of all its rows of the turn, so
that neither the cutting nor the company changes a gradient. Who listens reports, saves and cancels: runs is read anew
each turn, so that a run may join or leave it between turns, and to stop altogether one stops asking.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from core.data.batches import Corpus, cuts, micro_batches
from core.data.tokens import TokenRow
from core.effects import Effect, Ensemble, members_of
from core.happenings import Cramped, Event, Failed, Skipped, Step
from core.losses import TokenLosses, assembled, token_losses
from core.methods import Method
from core.model import RoutedModel, Rows
from core.preferences import Pairs, Preference, nats_of, nats_of_references
from core.routing import Routing, dropout_key
from core.run import Run
from core.score import Loss, Score
from core.shortage import MOST_HALVINGS, is_lack_of_memory, smaller

__all__ = ["Cramped", "Event", "Failed", "Run", "Score", "Skipped", "Step", "evaluate", "evaluate_pairs", "train"]


@dataclass(frozen=True, eq=False)
class _Piece:
    """What is learned from together, one row or a pair, and whose it is."""

    run: Run
    place: int  # in its run's corpus
    rows: tuple[TokenRow, ...]

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def cost(self) -> int:
        """Tokens that go forward for it: those of a pair twice, once as what it is held to reads them."""
        return 2 * self.tokens if self.run.preference else self.tokens

    @property
    def weight(self) -> int:
        """Its part of the denominator of its run's loss: learned tokens, or one for a pair."""
        return 1 if self.run.preference else sum(int(row.learned.sum()) for row in self.rows)


@dataclass(frozen=True, eq=False)
class _Worn:
    """One row of a micro-batch."""

    run: Run
    key: int  # of its dropout and noise
    row: TokenRow
    effect: Effect
    reference: Effect | None  # of a row of a pair: what it is held to, the bare base if nothing


def train(model: RoutedModel, runs: Sequence[Run]) -> Iterator[Event]:
    """Yields one event for each active run after every turn, until no run is active.

    An error of the common forward is raised: it cannot be blamed on one run. So is a lack of memory where smaller
    micro-batches were of no help: before that each run hears that it was Cramped.
    """
    halvings = 0
    while active := [run for run in runs if run.is_active]:
        began = time.perf_counter()
        pieces = [_Piece(run, place, run.corpus.rows_of(place)) for run in active for place in run.next_rows()]
        scores = _learned(model, pieces, can_shrink=halvings < MOST_HALVINGS)
        if scores is None:
            halvings += 1
            yield from (Cramped(run, run.step, run.spec.tokens_per_batch) for run in active)
            continue
        done = [_updated(run, sum(p.tokens for p in pieces if p.run is run), scores[run]) for run in active]
        seconds = time.perf_counter() - began
        yield from (replace(event, seconds=seconds) if isinstance(event, Step) else event for event in done)


def evaluate(model: RoutedModel, method: Method, corpus: Corpus, tokens_per_batch: int) -> Iterator[Score]:
    """Yields the score of all rows so far after each micro-batch; the last is the whole corpus's.

    Of an ensemble it is the mean over its members, each of which sees every row.
    """
    score = Score()
    with torch.no_grad():
        members = members_of(method.effect())
    for batch in micro_batches(list(corpus), tokens_per_batch // len(members)):
        with torch.no_grad():
            routing = Routing.of_rows([member for _ in batch for member in members])
            with model.wearing(routing):
                rows, learned = assembled(model, [row for row in batch for _ in members], routing)
                losses = token_losses(model, model(rows), rows.ids, learned, rows.starts)
                score = score.plus_rows(losses, len(rows))
        yield score


def evaluate_pairs(
    model: RoutedModel, method: Method, pairs: Pairs, preference: Preference, tokens_per_batch: int
) -> Iterator[Score]:
    """As evaluate, of pairs: nats for each, its reward margin, and whether that is positive."""
    score = Score()
    with torch.no_grad():
        members = _members(method.effect(), preference)
    remaining = iter(pairs)
    for count in cuts([2 * sum(len(row.ids) for row in rows) for rows in pairs], tokens_per_batch // len(members)):
        batch = [next(remaining) for _ in range(count)]
        worn = [(row, member, held) for rows in batch for member, held in members for row in rows]
        rows = [row for row, _, _ in worn]
        references = nats_of_references(model, rows, [held for _, _, held in worn])
        score = score.plus(preference.loss(nats_of(model, rows, [member for _, member, _ in worn]), references))
        yield score


def _learned(model: RoutedModel, pieces: Sequence[_Piece], *, can_shrink: bool) -> dict[Run, Score] | None:
    """As _learn; None where memory was not enough and the runs of the turn have been given fewer tokens a forward.

    No gradient is left of such a turn. Raises what _learn does.
    """
    try:
        return _learn(model, pieces)
    except (MemoryError, RuntimeError) as error:
        if not (can_shrink and is_lack_of_memory(error) and _shrink(pieces)):
            raise
    # The error, which holds all that the turn had made, is gone by here.
    for run in {piece.run for piece in pieces}:
        run.optimiser.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _shrink(pieces: Sequence[_Piece]) -> bool:
    """Whether the micro-batches of these will be smaller: each run's tokens of a forward are cut, where it has more."""
    remaining, runs = iter(pieces), {piece.run for piece in pieces}
    counts = cuts([piece.cost for piece in pieces], _budget(runs))
    tokens = smaller([[next(remaining).cost for _ in range(count)] for count in counts])
    if tokens is None:
        return False
    for run in runs:
        run.forward_at_most(tokens * run.spec.method.members)
    return True


def _budget(runs: Iterable[Run]) -> int:
    """Tokens of one micro-batch, of each member of an ensemble."""
    return min(run.spec.tokens_per_batch // run.spec.method.members for run in runs)


def _learn(model: RoutedModel, pieces: Sequence[_Piece]) -> dict[Run, Score]:
    """Goes forward and backward over a turn's rows; the gradients are then those of each run's mean loss."""
    scores = {piece.run: Score() for piece in pieces}
    weights = {run: sum(p.weight for p in pieces if p.run is run) for run in scores}
    remaining = iter(pieces)
    for count in cuts([piece.cost for piece in pieces], _budget(scores)):
        for run, loss in _backward(model, [next(remaining) for _ in range(count)], weights):
            scores[run] = scores[run].plus(loss)
    return scores


def _backward(model: RoutedModel, pieces: Sequence[_Piece], weights: dict[Run, int]) -> list[tuple[Run, Loss]]:
    """One micro-batch, forward and backward. weights: of each run's whole turn, its loss's denominator."""
    effects = {run: effect for run in {p.run: None for p in pieces} if (effect := _guarded(run, run.method.effect))}
    # A row goes forward once for each member of an ensemble: each then has the gradient it would have by itself.
    worn = [
        _Worn(p.run, dropout_key(p.run.spec.seed, p.run.step, p.place), row, member, reference)
        for p in pieces
        if p.run in effects
        for member, reference in _members(effects[p.run], p.run.preference)
        for row in p.rows
    ]
    if not worn:
        return []
    references = _references(model, worn)
    noise = [w.run.spec.neftune_alpha or 0.0 for w in worn]
    routing = Routing.of_rows([w.effect for w in worn], dropout_keys=[w.key for w in worn], noise_alphas=noise)
    with model.wearing(routing):
        rows, learned = assembled(model, [w.row for w in worn], routing)
        losses = _losses(_Seen(model, model(rows), rows, learned), [w.run for w in worn], references)
        if losses:
            torch.stack([loss.total / weights[run] for run, loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
    return losses


def _members(effect: Effect | Ensemble, preference: Preference | None) -> list[tuple[Effect, Effect | None]]:
    """What a run's rows wear, each with what it is held to."""
    members = members_of(effect)
    held = preference.references(len(members)) if preference else (None,) * len(members)
    return list(zip(members, held, strict=True))


def _references(model: RoutedModel, worn: Sequence[_Worn]) -> dict[Run, Tensor]:
    """Of each run that compares, what its rows [B] cost what it is held to, in nats.

    They are not kept for the next epoch: a row in other company differs in the last bits, and a run that was stopped
    would not know them.
    """
    compared = [w for w in worn if w.run.preference]
    if not compared:
        return {}
    nats = nats_of_references(model, [w.row for w in compared], [w.reference for w in compared])
    owners = [w.run for w in compared]
    return {run: nats[[number for number, owner in enumerate(owners) if owner is run]] for run in {*owners}}


@dataclass(frozen=True, eq=False)
class _Seen:
    """A micro-batch that went forward."""

    model: RoutedModel
    hidden: Tensor  # [N, H]
    rows: Rows
    learned: Tensor  # [N] bool

    def losses(self, first: int, last: int) -> TokenLosses:
        """Of the rows from first up to but without last."""
        bounds = self.rows.starts[first : last + 1]
        cut = slice(bounds[0], bounds[-1])
        starts = [bound - bounds[0] for bound in bounds]
        return token_losses(self.model, self.hidden[cut], self.rows.ids[cut], self.learned[cut], starts)

    def parted(self) -> Callable[[int, int], TokenLosses]:
        """As losses, but the output head, which is the largest product, runs once for all rows.

        Where a row is at fault it runs for each part by itself, so that its owner alone ends.
        """
        try:
            return self.losses(0, len(self.rows)).between
        except Exception as error:
            if is_lack_of_memory(error):
                raise
            return self.losses


def _losses(seen: _Seen, owners: Sequence[Run], references: dict[Run, Tensor]) -> list[tuple[Run, Loss]]:
    """Each run's own. Rows of one run are neighbours."""
    found: list[tuple[Run, Loss]] = []
    losses, first = seen.parted(), 0
    for run, own in groupby(owners):
        last = first + sum(1 for _ in own)
        loss = _guarded(run, partial(_loss, run, partial(losses, first, last), last - first, references.get(run)))
        if loss is not None:
            found.append((run, loss))
        first = last
    return found


def _loss(run: Run, losses: Callable[[], TokenLosses], count: int, reference: Tensor | None) -> Loss:
    """count: of its rows."""
    if run.preference is None or reference is None:
        return losses().summed()
    return run.preference.loss(losses().of_rows(count), reference)


def _updated(run: Run, tokens: int, score: Score) -> Event:
    """Steps one run, whose gradients are in place, by itself."""
    step = _guarded(run, lambda: _step(run, tokens, score))
    if step is not None:
        return step
    assert run.error is not None
    return Failed(run, run.error)


def _step(run: Run, tokens: int, score: Score) -> Step | Skipped:
    rate = run.learning_rate
    norm = run.update(score.loss)
    if run.skipped_in_a_row:
        return Skipped(run, run.step, run.skipped_in_a_row)
    run.trained_tokens += tokens
    step = Step(run, run.step, run.total_steps, score.loss, score.accuracy, rate, norm, tokens, seconds=0.0)
    return replace(step, reward_margin=score.reward_margin) if run.preference else step


T = TypeVar("T")


def _guarded(run: Run, act: Callable[[], T]) -> T | None:
    """What a run does by itself. Its error ends it alone, so it is kept with the run and not raised; None then."""
    if run.error is not None:
        return None
    try:
        return act()
    except Exception as error:
        if is_lack_of_memory(error):
            raise  # all runs share the memory: it is nobody's own
        run.error = error  # whatever it is, it is this run's own, and Failed carries it out
        return None
