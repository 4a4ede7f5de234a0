"""One micro-batch, forward and backward: rows of any owners, each owner's loss by itself.

Knows neither run nor method: an owner is whoever rows belong to, here or in another process. What goes wrong with one
owner's loss ends that owner alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from core.data.tokens import TokenRow
from core.effects import Effect
from core.losses import TokenLosses, assembled, token_losses
from core.model import RoutedModel, Rows
from core.preferences import Preference, nats_of_references
from core.routing import Routing
from core.score import Loss
from core.shortage import is_lack_of_memory


class Owner(Protocol):
    """Whose rows they are. Compared by identity."""

    error: Exception | None  # what ended it alone

    @property
    def preference(self) -> Preference | None:
        """How its pairs are compared; None of plain rows."""


O = TypeVar("O", bound=Owner)  # noqa: E741 - the letter of an owner
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Worn(Generic[O]):
    """One row of a micro-batch."""

    owner: O
    key: int  # of its dropout and noise
    row: TokenRow
    effect: Effect
    reference: Effect | None  # of a row of a pair: what it is held to, the bare base if nothing
    noise: float = 0.0  # alpha of its embeddings' noise


def learn_from(model: RoutedModel, worn: Sequence[Worn[O]], weights: Mapping[O, float]) -> list[tuple[O, Loss]]:
    """Goes forward and backward over one micro-batch, in which the rows of one owner are neighbours.

    weights: of each owner's whole turn, its loss's denominator.
    """
    if not worn:
        return []
    references = _references(model, worn)
    keys, noise = [w.key for w in worn], [w.noise for w in worn]
    routing = Routing.of_rows([w.effect for w in worn], dropout_keys=keys, noise_alphas=noise)
    with model.wearing(routing):
        rows, learned = assembled(model, [w.row for w in worn], routing)
        hidden = model(rows)
        losses = _losses(_Seen(model, hidden, rows, learned), [w.owner for w in worn], references)
        # Where every loss failed, others may yet wait for this process to go back through its layers.
        mean = (
            torch.stack([loss.total / weights[owner] for owner, loss in losses]).sum() if losses else hidden.sum() * 0
        )
        mean.backward()
    return losses


def guarded(owner: Owner, act: Callable[[], T]) -> T | None:
    """What an owner does by itself. Its error ends it alone, so it is kept with it and not raised; None then."""
    if owner.error is not None:
        return None
    try:
        return act()
    except Exception as error:
        if is_lack_of_memory(error):
            raise  # all owners share the memory: it is nobody's own
        owner.error = error  # whatever it is, it is this owner's own, and is told with it
        return None


def _references(model: RoutedModel, worn: Sequence[Worn[O]]) -> dict[O, Tensor]:
    """Of each owner that compares, what its rows [B] cost what it is held to, in nats.

    They are not kept for the next epoch: a row in other company differs in the last bits, and a run that was stopped
    would not know them.
    """
    compared = [w for w in worn if w.owner.preference]
    if not compared:
        return {}
    nats = nats_of_references(model, [w.row for w in compared], [w.reference for w in compared])
    owners = [w.owner for w in compared]
    return {mine: nats[[number for number, owner in enumerate(owners) if owner is mine]] for mine in {*owners}}


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


def _losses(seen: _Seen, owners: Sequence[O], references: Mapping[O, Tensor]) -> list[tuple[O, Loss]]:
    """Each owner's own. Rows of one are neighbours."""
    found: list[tuple[O, Loss]] = []
    losses, first = seen.parted(), 0
    for owner, own in groupby(owners):
        last = first + sum(1 for _ in own)
        loss = guarded(owner, partial(_loss, owner, partial(losses, first, last), last - first, references.get(owner)))
        if loss is not None:
            found.append((owner, loss))
        first = last
    return found


def _loss(owner: Owner, losses: Callable[[], TokenLosses], count: int, reference: Tensor | None) -> Loss:
    """count: of its rows."""
    if owner.preference is None or reference is None:
        return losses().summed()
    return owner.preference.loss(losses().of_rows(count), reference)
