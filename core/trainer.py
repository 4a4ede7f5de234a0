"""Runs in step: each turn takes the next rows of every run, learns from all of them at once, and steps each run alone.

One job is the case of one run. The rows of a turn are cut into micro-batches that fit; each goes forward and backward
once. A run's loss is the sum over its learned tokens divided by the learned tokens of all its rows of the turn, so
that neither the cutting nor the company changes a gradient. Who listens reports, saves and cancels: runs is read anew
each turn, so that a run may join or leave it between turns, and to stop altogether one stops asking.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from core.data.batches import Corpus, micro_batches
from core.data.tokens import TokenRow
from core.effects import members_of
from core.losses import NextTokenLoss, TokenLosses, next_token_loss, token_losses
from core.methods import Method
from core.model import RoutedModel, Rows
from core.routing import Routing, dropout_key
from core.run import Run

SHORT = 64  # learned tokens: an answer that may be asked for to the letter

__all__ = ["Event", "Failed", "Run", "Score", "Skipped", "Step", "evaluate", "train"]


@dataclass(frozen=True, eq=False)
class Step:
    """One optimiser step of one run, done. number counts from 1 up to of."""

    run: Run
    number: int
    of: int
    loss: float  # nats for each learned token
    accuracy: float  # share of learned tokens that were the most likely ones
    learning_rate: float
    grad_norm: float  # before clipping
    tokens: int  # learned and unlearned
    seconds: float  # of the whole turn


@dataclass(frozen=True, eq=False)
class Skipped:
    """One step of one run whose loss or gradient was not finite: nothing was learned, the run goes on."""

    run: Run
    number: int
    in_a_row: int


@dataclass(frozen=True, eq=False)
class Failed:
    """One run's own end: it takes no further turn, the others go on."""

    run: Run
    error: Exception


Event = Step | Skipped | Failed


@dataclass(frozen=True)
class Score:
    """Learned tokens of some rows: the sum of their losses in nats, how many, and how many the model had right."""

    total: float = 0.0
    count: int = 0
    correct: int = 0
    short: int = 0  # rows of which at most SHORT tokens are learned, of an evaluation
    exact: int = 0  # of those, how many had all of them right

    @property
    def loss(self) -> float:
        """Nats for each learned token."""
        return self.total / self.count

    @property
    def accuracy(self) -> float:
        """Share of learned tokens that were the most likely ones."""
        return self.correct / self.count

    @property
    def exact_match(self) -> float | None:
        """Share of the short rows whose learned tokens were all the likeliest, given those before them.

        Of a row with one answer that is whether greedy decoding would say the answer, to its end. None without one.
        """
        return self.exact / self.short if self.short else None

    def plus(self, loss: NextTokenLoss) -> "Score":
        """Its sum with one micro-batch more."""
        total, count, correct = self.total + float(loss.total.detach()), self.count + loss.count, loss.correct
        return replace(self, total=total, count=count, correct=self.correct + correct)

    def plus_rows(self, losses: TokenLosses, count: int) -> "Score":
        """As plus, of a micro-batch of so many rows, each judged as a whole too."""
        learned = losses.rows.bincount(minlength=count)
        right = losses.rows[losses.hits].bincount(minlength=count)
        is_short = (learned > 0) & (learned <= SHORT)
        exact = int((is_short & (learned == right)).sum())
        return replace(self.plus(losses.summed()), short=self.short + int(is_short.sum()), exact=self.exact + exact)


@dataclass(frozen=True, eq=False)
class _Piece:
    """One row of a turn, and whose it is."""

    run: Run
    place: int  # of the row in its run's corpus
    row: TokenRow


def train(model: RoutedModel, runs: Sequence[Run]) -> Iterator[Event]:
    """Yields one event for each active run after every turn, until no run is active.

    An error of the common forward, such as a lack of memory, is raised: it cannot be blamed on one run.
    """
    while active := [run for run in runs if run.is_active]:
        began = time.perf_counter()
        pieces = [_Piece(run, place, run.corpus[place]) for run in active for place in run.next_rows()]
        scores = _learn(model, pieces)
        done = [_updated(run, [p.row for p in pieces if p.run is run], scores[run]) for run in active]
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
                rows, learned = _assembled(model, [row for row in batch for _ in members], routing)
                losses = token_losses(model, model(rows), rows.ids, learned, rows.starts)
                score = score.plus_rows(losses, len(rows))
        yield score


def _learn(model: RoutedModel, pieces: Sequence[_Piece]) -> dict[Run, Score]:
    """Goes forward and backward over a turn's rows; the gradients are then those of each run's mean loss."""
    scores = {piece.run: Score() for piece in pieces}
    learned = {run: sum(int(p.row.learned.sum()) for p in pieces if p.run is run) for run in scores}
    remaining = iter(pieces)
    budget = min(run.spec.tokens_per_batch // run.spec.method.members for run in scores)
    for batch in micro_batches([piece.row for piece in pieces], budget):
        for run, loss in _backward(model, [next(remaining) for _ in batch], learned):
            scores[run] = scores[run].plus(loss)
    return scores


def _backward(
    model: RoutedModel, pieces: Sequence[_Piece], learned_tokens: dict[Run, int]
) -> list[tuple[Run, NextTokenLoss]]:
    """One micro-batch, forward and backward. learned_tokens: of each run's whole turn, its loss's denominator."""
    effects = {run: effect for run in {p.run: None for p in pieces} if (effect := _guarded(run, run.method.effect))}
    # A row goes forward once for each member of an ensemble: each then has the gradient it would have by itself.
    rows_worn = [(p, member) for p in pieces if p.run in effects for member in members_of(effects[p.run])]
    if not rows_worn:
        return []
    worn = [piece for piece, _ in rows_worn]
    keys = [dropout_key(piece.run.spec.seed, piece.run.step, piece.place) for piece in worn]
    noise = [piece.run.spec.neftune_alpha or 0.0 for piece in worn]
    routing = Routing.of_rows([member for _, member in rows_worn], dropout_keys=keys, noise_alphas=noise)
    with model.wearing(routing):
        rows, learned = _assembled(model, [piece.row for piece in worn], routing)
        hidden = model(rows)
        losses = _losses(model, hidden, rows, learned, [piece.run for piece in worn])
        if losses:
            torch.stack([loss.total / learned_tokens[run] for run, loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
    return losses


def _losses(
    model: RoutedModel, hidden: Tensor, rows: Rows, learned: Tensor, owners: Sequence[Run]
) -> list[tuple[Run, NextTokenLoss]]:
    """Each run's own, of its rows in hidden [N, H]. Rows of one run are neighbours."""
    found, first = [], 0
    for run, own in groupby(owners):
        last = first + sum(1 for _ in own)
        bounds = rows.starts[first : last + 1]
        cut = slice(bounds[0], bounds[-1])
        starts = [bound - bounds[0] for bound in bounds]
        loss = _guarded(run, partial(next_token_loss, model, hidden[cut], rows.ids[cut], learned[cut], starts))
        if loss is not None:
            found.append((run, loss))
        first = last
    return found


def _assembled(model: RoutedModel, batch: Sequence[TokenRow], routing: Routing) -> tuple[Rows, Tensor]:
    """The rows as the forward takes them, and which of their tokens are learned: [N] bool."""
    rows = Rows.of(
        [torch.from_numpy(row.ids) for row in batch], first_positions=routing.first_positions(), device=model.device
    )
    return rows, torch.from_numpy(np.concatenate([row.learned for row in batch])).to(model.device)


def _updated(run: Run, rows: Sequence[TokenRow], score: Score) -> Event:
    """Steps one run, whose gradients are in place, by itself."""
    step = _guarded(run, lambda: _step(run, sum(len(row.ids) for row in rows), score))
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
    return Step(run, run.step, run.total_steps, score.loss, score.accuracy, rate, norm, tokens, seconds=0.0)


T = TypeVar("T")


def _guarded(run: Run, act: Callable[[], T]) -> T | None:
    """What a run does by itself. Its error ends it alone, so it is kept with the run and not raised; None then."""
    if run.error is not None:
        return None
    try:
        return act()
    except (MemoryError, torch.OutOfMemoryError):
        raise  # all runs share the memory: it is nobody's own
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's own, and Failed carries it out
        run.error = error
        return None
