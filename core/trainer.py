"""Runs in step: each turn takes the next rows of every run, learns from all of them at once, and steps each run alone.

One job is the case of one run. The rows of a turn are cut into micro-batches that fit; each goes forward and backward
once. A run's loss is the sum over its learned tokens divided by the learned tokens of all its rows of the turn, so
that neither the cutting nor the company changes a gradient. Who listens reports, saves and cancels: runs is read anew
each turn, so that a run may join or leave it between turns, and to stop altogether one stops asking.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from core.data.batches import Corpus, cuts, micro_batches
from core.effects import members_of
from core.happenings import Cramped, Event, Failed, Skipped, Step
from core.learning import guarded, learn_from
from core.losses import assembled, token_losses
from core.methods import Method
from core.model import RoutedModel
from core.pieces import Piece, effects_of, held, micro_batches_of, pieces_of, shrink, weights_of, worn_by
from core.preferences import Pairs, Preference, nats_of, nats_of_references
from core.routing import Routing
from core.run import Run
from core.score import Score
from core.shortage import MOST_HALVINGS, is_lack_of_memory
from core.team import Team
from core.together import learn_together

__all__ = ["Cramped", "Event", "Failed", "Run", "Score", "Skipped", "Step", "evaluate", "evaluate_pairs", "train"]

Learn = Callable[[Sequence[Piece]], dict[Run, Score]]


def train(model: RoutedModel, runs: Sequence[Run], team: Team | None = None) -> Iterator[Event]:
    """Yields one event for each active run after every turn, until no run is active.

    An error of the common forward is raised: it cannot be blamed on one run. So is a lack of memory where smaller
    micro-batches were of no help: before that each run hears that it was Cramped. team: of the process that leads it,
    while the others follow (core/together.py); a step then learns what it learns without.
    """
    learn: Learn = partial(learn_together, model, team) if team else partial(_learn, model)
    processes = team.size if team else 1
    # Who gathers layers from others cannot begin anew by himself.
    most = 0 if team and team.is_dividing else MOST_HALVINGS
    halvings = 0
    while active := [run for run in runs if run.is_active]:
        began = time.perf_counter()
        pieces = pieces_of(active)
        scores = _learned(learn, pieces, processes, can_shrink=halvings < most)
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
        members = held(method.effect(), preference)
    remaining = iter(pairs)
    for count in cuts([2 * sum(len(row.ids) for row in rows) for rows in pairs], tokens_per_batch // len(members)):
        batch = [next(remaining) for _ in range(count)]
        worn = [(row, member, held) for rows in batch for member, held in members for row in rows]
        rows = [row for row, _, _ in worn]
        references = nats_of_references(model, rows, [held for _, _, held in worn])
        score = score.plus(preference.loss(nats_of(model, rows, [member for _, member, _ in worn]), references))
        yield score


def _learned(learn: Learn, pieces: Sequence[Piece], processes: int, *, can_shrink: bool) -> dict[Run, Score] | None:
    """As learn; None where memory was not enough and the runs of the turn have been given fewer tokens a forward.

    No gradient is left of such a turn. Raises what learn does.
    """
    try:
        return learn(pieces)
    except (MemoryError, RuntimeError) as error:
        if not (can_shrink and is_lack_of_memory(error) and shrink(pieces, processes)):
            raise
    # The error, which holds all that the turn had made, is gone by here.
    for run in {piece.run for piece in pieces}:
        run.optimiser.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _learn(model: RoutedModel, pieces: Sequence[Piece]) -> dict[Run, Score]:
    """Goes forward and backward over a turn's rows; the gradients are then those of each run's mean loss."""
    weights = weights_of(pieces)
    scores = {run: Score() for run in weights}
    for batch in micro_batches_of(pieces)[0]:
        for run, loss in learn_from(model, worn_by(batch, effects_of(batch)), weights):
            scores[run] = scores[run].plus(loss)
    return scores


def _updated(run: Run, tokens: int, score: Score) -> Event:
    """Steps one run, whose gradients are in place, by itself."""
    step = guarded(run, lambda: _step(run, tokens, score))
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
