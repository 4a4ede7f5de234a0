"""The arithmetic of a routed batch as one reads it: token by token, each through its own adapter.

Nothing calls this in earnest. core/ops/grouped.py must equal it, and the tests hold it to that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """What one adapter does at one site."""

    a: Tensor  # [R, I]
    b: Tensor  # [O, R]
    scale: float


class Span(NamedTuple):
    """Neighbouring tokens that wear one adapter: tokens start up to, not including, stop."""

    start: int
    stop: int
    slot: int


def add_low_rank(y: Tensor, x: Tensor, parts: Sequence[Part | None], spans: Sequence[Span]) -> Tensor:
    """The output of a frozen linear layer plus each token's own low-rank part.

    Semantics: as written. A token of no span, or of a slot without a part at this site, keeps its y bit for bit.

    Args:
        y: [N, O] what the frozen layer gave.
        x: [N, I] what went in.
        parts: S of them, one for each slot.
        spans: of tokens, apart from one another.

    Returns:
        [N, O], a new tensor.

    """
    tokens = list(y.unbind())
    for start, stop, slot in spans:
        part = parts[slot]
        if part is None:
            continue
        a, b = part.a.to(x.dtype), part.b.to(x.dtype)
        for n in range(start, stop):
            tokens[n] = tokens[n] + part.scale * (x[n] @ a.T @ b.T)
    return torch.stack(tokens)


def rescale(y: Tensor, bias: Tensor | None, spans: Sequence[Span], gains: Sequence[Tensor | None]) -> Tensor:
    """The output of a layer, its bias left out, times each token's own gain.

    Semantics: as written. A token of no span, or of a span without a gain, keeps its y bit for bit.

    Args:
        y: [N, O] what the layer gave, low-rank parts and bias in it.
        bias: [O], or None.
        spans: of tokens, apart from one another.
        gains: one for each span, [O] or None.

    Returns:
        [N, O], a new tensor.

    """
    tokens = list(y.unbind())
    for (start, stop, _), gain in zip(spans, gains, strict=True):
        if gain is None:
            continue
        for n in range(start, stop):
            free = tokens[n] if bias is None else tokens[n] - bias
            tokens[n] = (tokens[n] + (gain - 1) * free).to(y.dtype)
    return torch.stack(tokens)
