"""How likely the model itself held tokens: what clients know as logprobs. Before any temperature, penalty or ban."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Told:
    """One token's log-probability, and the likeliest tokens at its place with theirs, likeliest first."""

    token: int
    logprob: float | None  # None of a row's first token, which nothing foretells
    top: tuple[tuple[int, float], ...] = ()


def tell(logits: Tensor, tokens: Sequence[int], top: Sequence[int]) -> list[Told]:
    """Of each row: its token, and so many of the likeliest. logits [n, V] finite; tokens, top: n of them.

    Semantics: for each row alone, log_softmax of its logits in fp32, read at the token and at the largest `top`.
    """
    if not tokens:
        return []
    found = logits.float().log_softmax(-1)  # [n, V]
    own = found.gather(1, torch.tensor(tokens, device=found.device)[:, None])[:, 0].tolist()
    most = min(max(top), found.shape[-1])
    values, ids = found.topk(most) if most else (found[:, :0], found[:, :0].long())
    return [
        Told(token, logprob, tuple(zip(i[:n], v[:n], strict=True)))
        for token, logprob, n, i, v in zip(tokens, own, top, ids.tolist(), values.tolist(), strict=True)
    ]
