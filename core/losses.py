"""Next-token loss over learned tokens only, in chunks of tokens: the [N, V] logits never exist whole.

The gradient is computed in the forward, while a chunk's logits are there: two products instead of the three of a
recomputing backward. Chunks cut tokens and never the vocabulary, so nothing is summed in low precision. Products run in
the model's type, the softmax in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.data.tokens import TokenRow
from core.linear import Head
from core.model import RoutedModel, Rows
from core.routing import Routing

CHUNK = 256  # tokens; of a vocabulary of 49,152 that is 50 MB of fp32 logits


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """What each of a batch's n learned tokens costs, in the batch's order."""

    nats: Tensor  # [n] fp32
    hits: Tensor  # [n] bool: it was the likeliest
    rows: Tensor  # [n] the row that it stands in, from 0

    def summed(self) -> "NextTokenLoss":
        """Of the whole batch."""
        return NextTokenLoss(self.nats.sum(), len(self.nats), int(self.hits.sum()))

    def between(self, first: int, last: int) -> "TokenLosses":
        """Of the rows from first up to but without last, counted from 0 again."""
        start, stop = torch.searchsorted(self.rows, torch.tensor([first, last], device=self.rows.device)).tolist()
        return TokenLosses(self.nats[start:stop], self.hits[start:stop], self.rows[start:stop] - first)

    def of_rows(self, count: int) -> Tensor:
        """Of each of the batch's rows: [B]. count: B, since rows without a learned token are not named."""
        return self.nats.new_zeros(count).index_add(0, self.rows, self.nats)


@dataclass(frozen=True, eq=False)
class NextTokenLoss:
    """What a batch's learned tokens cost."""

    total: Tensor  # [] fp32: the sum in nats; the caller divides by its own denominator
    count: int  # learned tokens
    correct: int  # of them, how many were the likeliest
    margin: float = 0.0  # there is none: it belongs to pairs


def assembled(model: RoutedModel, batch: Sequence[TokenRow], routing: Routing) -> tuple[Rows, Tensor]:
    """The rows as the forward takes them, and which of their tokens are learned: [N] bool."""
    rows = Rows.of(
        [torch.from_numpy(row.ids) for row in batch], first_positions=routing.first_positions(), device=model.device
    )
    return rows, torch.from_numpy(np.concatenate([row.learned for row in batch])).to(model.device)


def next_token_loss(
    model: RoutedModel, hidden: Tensor, ids: Tensor, learned: Tensor, starts: Sequence[int]
) -> NextTokenLoss:
    """The sum of token_losses, which says what it takes and raises."""
    return token_losses(model, hidden, ids, learned, starts).summed()


def token_losses(
    model: RoutedModel, hidden: Tensor, ids: Tensor, learned: Tensor, starts: Sequence[int]
) -> TokenLosses:
    """Each learned token, predicted from the position before it in its own row.

    Args:
        model: for its output head.
        hidden: [N, H] as model(rows) gave it.
        ids: [N] int64.
        learned: [N] bool.
        starts: B + 1 row boundaries.

    Raises:
        ValueError: a row's first token is learned, or a virtual token is: nothing predicts them.

    """
    wanted = learned.nonzero()[:, 0]  # [n]
    bounds = torch.tensor(starts, device=learned.device)
    if bool(learned[bounds[:-1]].any()):
        raise ValueError("the first token of a row is marked as learned, but nothing in its row predicts it")
    targets = ids[wanted]
    if bool((targets < 0).any()):
        raise ValueError("a virtual token is marked as learned, but it is no word of the vocabulary")
    nats, hits = _ChunkedLoss.apply(hidden, wanted - 1, targets, model.head)  # type: ignore[no-untyped-call]
    return TokenLosses(nats, hits, torch.searchsorted(bounds, wanted, right=True) - 1)


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropies [n], their gradients in hidden ready before backward asks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, at: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        here = hidden[at]  # [n, H]
        grad = torch.empty_like(here) if ctx.needs_input_grad[0] else None
        nats = torch.empty(len(at), dtype=torch.float32, device=hidden.device)
        hits = torch.empty(len(at), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(at), CHUNK):
            cut = slice(start, start + CHUNK)
            nats[cut], hits[cut], dz = _chunk(head.logits(here[cut]), targets[cut], head.softcap)
            if grad is not None:
                grad[cut] = dz.to(here.dtype) @ head.weight
        ctx.mark_non_differentiable(hits)
        if grad is not None:
            ctx.save_for_backward(at, grad)
            ctx.shape = hidden.shape
        return nats, hits

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _hits: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        at, grad = ctx.saved_tensors
        dense = grad.new_zeros(ctx.shape)
        dense[at] = (grad * upstream[:, None]).to(grad.dtype)
        return dense, None, None, None


def _chunk(logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The losses [c], which guesses are right [c], and the losses' gradients in the raw logits [c, V], in fp32."""
    z = logits.float()
    peak, best = z.max(-1)
    target = z.gather(1, targets[:, None])  # [c, 1]
    bend = None if softcap is None else 1 - (z / softcap).square()  # the slope of the soft cap
    p = z.sub_(peak[:, None]).exp_()  # in place: nothing else reads these logits
    mass = p.sum(-1)  # [c]
    loss = peak + mass.log() - target[:, 0]
    p.div_(mass[:, None])
    p.scatter_add_(1, targets[:, None], torch.full_like(target, -1.0))
    return loss, best == targets, p if bend is None else p.mul_(bend)
