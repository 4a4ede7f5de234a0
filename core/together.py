"""One turn of a team: the leader deals its rows out, everyone learns from his share, the gradients are added up.

Only the leader knows runs, methods, optimisers and data. What it tells the others is what rows wear: effects, made
once a turn by each method, and the rows of each process. Everyone goes forward and backward to the *effects'* tensors;
the sums of these gradients go back to the leader, which takes them on through its methods and steps its optimisers.
So nothing has to be agreed on: ranks of AdaLoRA, skipped steps, roll-backs, who joins or leaves are decided once. A
loss is divided by the learned tokens of all rows of all processes, and a row's dropout is drawn by its own key, so how
rows are dealt out changes no gradient but in its last bits.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from core.carried import effect_of, leaves_of, plan_of, room_for, tensor_plan
from core.data.tokens import TokenRow
from core.division import go_through
from core.effects import Effect, Ensemble
from core.learning import Worn, guarded, learn_from
from core.model import RoutedModel
from core.orders import ORDER, Dismissed, Outcome, OwnerPlan, Passing, RowPlan, Sum, Turn
from core.pieces import Piece, effects_of, micro_batches_of, worn_by
from core.preferences import Preference
from core.run import Run
from core.score import Score
from core.shortage import is_lack_of_memory
from core.team import Team


def _nothing() -> None:
    return None


def learn_together(
    model: RoutedModel,
    team: Team,
    pieces: Sequence[Piece],
    weights: Mapping[Run, int],
    *,
    heed: Callable[[], object] = _nothing,
) -> dict[Run, Score]:
    """The leader's part of a turn; once all of a step's rows were dealt, the gradients are those of its mean loss.

    weights: the denominator of each run's loss. heed: called after each micro-batch of the leader's own.

    Raises:
        MemoryError: somebody had not enough. No gradient is left, and everyone is ready for another turn.
        RuntimeError: somebody's common forward failed.

    """
    effects = effects_of(pieces)
    turn, live = _turn(micro_batches_of(pieces, team.size), weights, effects)
    team.tell(turn.model_dump_json())
    with team.turn():
        outcomes, gradients = _learn(model, team, turn, team.spread(live), heed)
    runs = list(weights)
    for rank, outcome in enumerate(outcomes):
        for run, found in zip(runs, outcome.sums, strict=True):
            if found.error and run.error is None:
                run.error = RuntimeError(f"process {rank} of {team.size}: {found.error}")
    _onward(effects, live, gradients)
    sums = zip(*(outcome.sums for outcome in outcomes), strict=True)
    return {run: _score(mine) for run, mine in zip(runs, sums, strict=True)}


def follow(model: RoutedModel, team: Team) -> None:
    """Takes part in every turn of the leader's, until dismissed. Raises where the leader died, or crashes as it did."""
    while not isinstance(order := ORDER.validate_json(team.hear()), Dismissed):
        match order:
            case Turn():
                _follow(model, team, order)
            case Passing():
                go_through(model, is_learning=False)


def _follow(model: RoutedModel, team: Team, turn: Turn) -> None:
    rooms = [room_for(plan, model.device) for plan in turn.tensors]
    try:
        _learn(model, team, turn, team.spread(rooms))
    except MemoryError:
        if team.is_dividing:
            raise  # the others wait in the midst of a layer
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def dismiss(team: Team) -> None:
    """The leader's last word: everyone's follow() returns, and leaves."""
    team.tell(Dismissed().model_dump_json())
    team.leave()


@dataclass(eq=False)
class _Owner:
    """Stands for a run in a share of its rows."""

    preference: Preference | None
    error: Exception | None = None
    score: Score = field(default_factory=Score)


def _turn(
    shares: Sequence[Sequence[Sequence[Piece]]],
    weights: Mapping[Run, int],
    effects: Mapping[Run, Effect | Ensemble],
) -> tuple[Turn, list[Tensor]]:
    """What everyone is told, and the tensors of its effects."""
    worn = [[worn_by(batch, effects) for batch in share] for share in shares]
    rows = [w for share in worn for batch in share for w in batch]
    distinct = {id(e): e for w in rows for e in (w.effect, w.reference) if e is not None}
    number = {name: place for place, name in enumerate(distinct)}
    owner = {run: place for place, run in enumerate(weights)}
    planned = [plan_of(effect) for effect in distinct.values()]
    live = [tensor for _, tensors in planned for tensor in tensors]

    def row(w: Worn[Run]) -> RowPlan:
        return RowPlan(
            owner=owner[w.owner],
            key=w.key,
            ids=tuple(w.row.ids.tolist()),
            learned=tuple(w.row.learned.tolist()),
            effect=number[id(w.effect)],
            reference=None if w.reference is None else number[id(w.reference)],
            noise=w.noise,
        )

    turn = Turn(
        owners=tuple(
            OwnerPlan(weight=weight, beta=run.preference.beta if run.preference else None)
            for run, weight in weights.items()
        ),
        effects=tuple(plan for plan, _ in planned),
        tensors=tuple(map(tensor_plan, live)),
        shares=tuple(tuple(tuple(map(row, batch)) for batch in share) for share in worn),
        rounds=tuple(
            any(w.owner.preference is not None for batch in together for w in batch)
            for together in zip_longest(*worn, fillvalue=())
        ),
    )
    return turn, live


def _learn(
    model: RoutedModel, team: Team, turn: Turn, tensors: Sequence[Tensor], heed: Callable[[], object] = _nothing
) -> tuple[list[Outcome], Tensor]:
    """Everyone's part of a turn: all outcomes, and in the leader the sum of all gradients. Raises as learn_together."""
    leaves, gradients = leaves_of(tensors, turn.tensors)
    outcome = _outcome(model, turn, leaves, team, heed)
    outcomes = [Outcome.model_validate_json(said) for said in team.compare(outcome.model_dump_json())]
    for rank, said in enumerate(outcomes):
        if said.crash:
            raise RuntimeError(f"process {rank} of {team.size}: {said.crash}")
    for rank, said in enumerate(outcomes):
        if said.lack:
            raise MemoryError(f"process {rank} of {team.size}: {said.lack}")
    team.add_up(gradients)
    return outcomes, gradients


def _outcome(
    model: RoutedModel, turn: Turn, leaves: Sequence[Tensor], team: Team, heed: Callable[[], object]
) -> Outcome:
    """Learns from this process's own rows. The leaves' gradients are of no use where it came to nothing."""
    try:
        owners = [_Owner(None if plan.beta is None else Preference(plan.beta)) for plan in turn.owners]
        weights = {owner: plan.weight for owner, plan in zip(owners, turn.owners, strict=True)}
        mine = list(_batches(turn, owners, iter(leaves), team.rank))
        for place, is_compared in enumerate(turn.rounds):
            batch = mine[place] if place < len(mine) else []
            if team.is_dividing:
                _keep_step(model, batch, is_compared=is_compared)
            for owner, loss in learn_from(model, batch, weights):
                owner.score = owner.score.plus(loss)
            heed()
        return Outcome(sums=tuple(map(_sum, owners)))
    except Exception as error:
        if team.is_dividing:
            raise  # as above: only the end of this process can tell them
        if is_lack_of_memory(error):
            return Outcome(lack=str(error) or type(error).__name__)
        return Outcome(crash="".join(traceback.format_exception(error)))


def _keep_step(model: RoutedModel, batch: Sequence[Worn[_Owner]], *, is_compared: bool) -> None:
    """Goes through the layers of a divided base for what others do in this round, and this process does not."""
    if is_compared and not any(w.owner.preference for w in batch):
        go_through(model, is_learning=False)
    if not batch:
        go_through(model, is_learning=True)


def _batches(turn: Turn, owners: Sequence[_Owner], leaves: Iterator[Tensor], rank: int) -> Iterator[list[Worn[_Owner]]]:
    effects = [effect_of(plan, leaves) for plan in turn.effects]
    for batch in turn.shares[rank]:
        yield [
            Worn(
                owners[plan.owner],
                plan.key,
                TokenRow(0, np.array(plan.ids, np.int32), np.array(plan.learned)),
                effects[plan.effect],
                None if plan.reference is None else effects[plan.reference],
                plan.noise,
            )
            for plan in batch
        ]


def _sum(owner: _Owner) -> Sum:
    score, error = owner.score, owner.error
    told = None if error is None else f"{type(error).__name__}: {error}"
    return Sum(total=score.total, count=score.count, correct=score.correct, margin=score.margin, error=told)


def _score(sums: Sequence[Sum]) -> Score:
    """Of all processes, in their order."""
    total, margin = sum(s.total for s in sums), sum(s.margin for s in sums)
    return Score(total, sum(s.count for s in sums), sum(s.correct for s in sums), margin)


def _onward(effects: Mapping[Run, Effect | Ensemble], live: Sequence[Tensor], gradients: Tensor) -> None:
    """Takes the effects' gradients on to the parameters of their methods, each run by itself."""
    wanted = [tensor for tensor in live if tensor.requires_grad]
    cut = torch.split(gradients, [tensor.numel() for tensor in wanted])
    of = {id(tensor): piece.view(tensor.shape) for tensor, piece in zip(wanted, cut, strict=True)}
    for run, effect in effects.items():
        mine = [tensor for tensor in _tensors(effect) if id(tensor) in of]
        guarded(run, lambda mine=mine: torch.autograd.backward(mine, [of[id(t)] for t in mine]))  # type: ignore[misc]


def _tensors(effect: Effect | Ensemble) -> list[Tensor]:
    members = effect.members if isinstance(effect, Ensemble) else (effect,)
    return [tensor for member in members for tensor in plan_of(member)[1]]
