"""DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7): of two answers to one prompt, make one likelier.

    loss = -log sigmoid(beta * ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

p is the base wearing the adapter in training, q the same base wearing none, or the one that training went on from: no
second model. A log-probability is the sum over a row's learned tokens. beta times the outer difference is the reward
margin; a pair with a positive one is right. Knows no run.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.batches import Corpus
from core.data.pairs import PairRow
from core.data.tokens import TokenRow
from core.effects import Effect, Ensemble, members_of
from core.losses import assembled, token_losses
from core.model import RoutedModel
from core.routing import Routing


@dataclass(frozen=True, eq=False)
class Pairs:
    """Chosen and rejected answers: row n of one corpus and row n of the other begin with the same prompt."""

    chosen: Corpus
    rejected: Corpus

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"{len(self.chosen)} chosen rows and {len(self.rejected)} rejected ones make no pairs")

    @classmethod
    def of(cls, rows: Iterable[PairRow]) -> "Pairs":
        """Takes the pairs one by one, so that they need not be in memory as rows."""
        both = Corpus.of(row for pair in rows for row in (pair.chosen, pair.rejected))
        return cls(*(Corpus.of(both[place] for place in range(first, len(both), 2)) for first in (0, 1)))

    def __len__(self) -> int:
        return len(self.chosen)

    def rows_of(self, place: int) -> tuple[TokenRow, ...]:
        """The chosen row, then the rejected one. Raises IndexError."""
        return self.chosen[place], self.rejected[place]

    def __iter__(self) -> Iterator[tuple[TokenRow, ...]]:
        return (self.rows_of(place) for place in range(len(self)))


@dataclass(frozen=True, eq=False)
class PreferenceLoss:
    """What some pairs cost."""

    total: Tensor  # [] fp32: the sum in nats; the caller divides by its own denominator
    count: int  # pairs
    correct: int  # of them, how many have a positive reward margin
    margin: float  # the sum of the reward margins


@dataclass(frozen=True, eq=False)
class Preference:
    """What is to be compared with, and how strongly the adapter is held to it. reference None: the bare base."""

    beta: float
    reference: Effect | Ensemble | None = None

    def references(self, count: int) -> tuple[Effect | None, ...]:
        """What each of so many members of an ensemble is held to; of a single effect, count is 1."""
        return (None,) * count if self.reference is None else members_of(self.reference)

    def loss(self, policy: Tensor, reference: Tensor) -> PreferenceLoss:
        """Of the rows' summed nats, chosen and rejected by turns: [2n] each; reference without gradients."""
        # Nats are negative log-probabilities, so the rejected one's stand first.
        gain = (reference - policy).view(-1, 2)
        margins = self.beta * (gain[:, 0] - gain[:, 1])  # [n]
        total = -torch.nn.functional.logsigmoid(margins).sum()
        seen = margins.detach()
        return PreferenceLoss(total, len(seen), int((seen > 0).sum()), float(seen.sum()))


def bare(row: TokenRow) -> TokenRow:
    """The row without its virtual tokens, as the bare base reads it; words of a template stay."""
    is_word = row.ids >= 0
    return TokenRow(row.line, row.ids[is_word], row.learned[is_word])


@torch.no_grad()
def nats_of(model: RoutedModel, rows: Sequence[TokenRow], effects: Sequence[Effect | None]) -> Tensor:
    """What each row's learned tokens cost together, wearing its effect: [B] fp32, without gradients."""
    routing = Routing.of_rows(effects)
    with model.wearing(routing):
        batch, learned = assembled(model, rows, routing)
        return token_losses(model, model(batch), batch.ids, learned, batch.starts).of_rows(len(rows))


def nats_of_references(model: RoutedModel, rows: Sequence[TokenRow], references: Sequence[Effect | None]) -> Tensor:
    """As nats_of, of the rows as what they are held to reads them."""
    return nats_of(model, [row if held else bare(row) for row, held in zip(rows, references, strict=True)], references)
