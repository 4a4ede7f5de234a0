"""Runs in step: each turn takes the next rows of every run, learns from all of them at once, and steps each run alone.

One job is the case of one run. The rows of a turn are cut into micro-batches that fit; each goes forward and backward
once. A run's loss is the sum over its learned tokens divided by the learned tokens of all rows of its step, so that
neither the cutting nor the company changes a gradient. A step much larger than the others' takes several turns
(core/strides.py). Who listens reports, saves and cancels: runs is read anew each turn, so that a run may join or leave
it between turns, and to stop altogether one stops asking.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from core.pieces import Piece, effects_of, held, micro_batches_of, shrink, worn_by
from core.preferences import Pairs, Preference, nats_of, nats_of_references
from core.routing import Routing
from core.run import Run
from core.score import Score
from core.shortage import MOST_HALVINGS, is_lack_of_memory
from core.strides import Stride, parts_of, strides_of, under_way
from core.team import Team
from core.together import learn_together

__all__ = ["Cramped", "Event", "Failed", "Run", "Score", "Skipped", "Step", "evaluate", "evaluate_pairs", "train"]

Learn = Callable[[Sequence[Piece], Mapping[Run, int]], dict[Run, Score]]
Heed = Callable[[], object]


def _nothing() -> None:
    return None


def train(
    model: RoutedModel, runs: Sequence[Run], team: Team | None = None, *, heed: Heed = _nothing
) -> Iterator[Event]:
    """Yields one event for each active run whose step is done, after every turn, until no run is active.

    An error of the common forward is raised: it cannot be blamed on one run. So is a lack of memory where smaller
    micro-batches were of no help: before that each run hears that it was Cramped. team: of the process that leads it,
    while the others follow (core/together.py); a step then learns what it learns without. heed: called after each
    micro-batch, for a turn may take long.
    """
    learn: Learn = partial(learn_together, model, team, heed=heed) if team else partial(_learn, model, heed=heed)
    processes = team.size if team else 1
    # Who gathers layers from others cannot begin anew by himself.
    most = 0 if team and team.is_dividing else MOST_HALVINGS
    with under_way() as begun:
        yield from _turns(learn, runs, begun, processes, most)


def _turns(
    learn: Learn, runs: Sequence[Run], begun: dict[Run, Stride], processes: int, most_halvings: int
) -> Iterator[Event]:
    halvings = 0
    while active := [run for run in runs if run.is_active]:
        began = time.perf_counter()
        strides = strides_of(active, begun)
        parts = parts_of(strides)
        scores = _learned(learn, parts, strides, processes, can_shrink=halvings < most_halvings)
        if scores is None:
            halvings += 1
            begun.clear()
            yield from (Cramped(run, run.step, run.spec.tokens_per_batch) for run in active)
            continue
        done = _ended(strides, parts, scores, began)
        for event in done:
            del begun[event.run]
        yield from done


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


def _learned(
    learn: Learn, parts: Sequence[Sequence[Piece]], strides: Sequence[Stride], processes: int, *, can_shrink: bool
) -> dict[Run, Score] | None:
    """As learn; None where memory was not enough and the runs of the turn have been given fewer tokens a forward.

    No gradient is left of such a turn. Raises what learn does.
    """
    pieces = [piece for part in parts for piece in part]
    try:
        return learn(pieces, {stride.run: stride.weight for stride in strides})
    except (MemoryError, RuntimeError) as error:
        if not (can_shrink and is_lack_of_memory(error) and shrink(pieces, processes)):
            raise
    # The error, which holds all that the turn had made, is gone by here.
    for stride in strides:
        stride.run.optimiser.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _learn(
    model: RoutedModel, pieces: Sequence[Piece], weights: Mapping[Run, int], *, heed: Heed = _nothing
) -> dict[Run, Score]:
    """Goes forward and backward over a turn's rows; once all of a step's have, the gradients are those of its mean."""
    scores = {run: Score() for run in weights}
    for batch in micro_batches_of(pieces)[0]:
        for run, loss in learn_from(model, worn_by(batch, effects_of(batch)), weights):
            scores[run] = scores[run].plus(loss)
        heed()
    return scores


def _ended(
    strides: Sequence[Stride], parts: Sequence[Sequence[Piece]], scores: Mapping[Run, Score], began: float
) -> list[Event]:
    """What became of the steps that this turn ended, each stepped by itself."""
    for stride, part in zip(strides, parts, strict=True):
        stride.went(len(part), scores[stride.run])
    ended = [(stride, _updated(stride)) for stride in strides if stride.is_over]
    seconds = time.perf_counter() - began
    for stride in strides:
        stride.seconds += seconds
    return [replace(e, seconds=s.seconds) if isinstance(e, Step) else e for s, e in ended]


def _updated(stride: Stride) -> Event:
    """Steps one run, whose gradients are in place, by itself."""
    run = stride.run
    step = guarded(run, lambda: _step(run, stride.tokens, stride.score))
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
