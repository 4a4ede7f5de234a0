"""What a request asks of its logits before a token is drawn: penalties, biases, and tokens that may not come.

Each row is shaped alone, from its own ids: no neighbour changes it, and a replay finds the same counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.specs.generation import SamplingSpec


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row's next token is to be chosen."""

    sampling: SamplingSpec
    position: int  # counts the row's drawn tokens from 0
    read: Sequence[int] = ()  # the prompt's ids; virtual ones are negative
    drawn: Sequence[int] = ()
    allowed: NDArray[np.bool_] | None = None  # [V]; None allows all

    @property
    def is_shaped(self) -> bool:
        """Whether the row's logits are to be changed at all."""
        asked = self.sampling
        penalties = (asked.presence_penalty, asked.frequency_penalty, asked.repetition_penalty - 1)
        return self.allowed is not None or bool(asked.logit_bias) or any(penalties)


def shaped(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The logits that tokens are chosen by, [n, V]: in fp32 where a row asks for a change, else those given.

    Semantics: for each row alone, the logit of every token read or drawn is divided by repetition_penalty where it is
    above 0 and multiplied by it where not; then presence_penalty is taken off every token drawn, frequency_penalty once
    for each time; then logit_bias is added; then what is not allowed becomes minus infinity.
    """
    rows = [row for row, draw in enumerate(draws) if draw.is_shaped]
    if not rows:
        return logits
    changed = logits.float().clone()
    for row in rows:
        _penalise(changed[row], draws[row])
        _restrict(changed[row], draws[row])
    return changed


def _penalise(logits: Tensor, draw: Draw) -> None:
    """In place: logits [V] of one row."""
    asked, V = draw.sampling, logits.shape[-1]
    known = sorted({i for ids in (draw.read, draw.drawn) for i in ids if 0 <= i < V})
    if asked.repetition_penalty != 1 and known:
        at = torch.tensor(known, device=logits.device)
        found = logits[at]
        logits[at] = torch.where(found > 0, found / asked.repetition_penalty, found * asked.repetition_penalty)
    if (asked.presence_penalty or asked.frequency_penalty) and draw.drawn:
        counts = Counter(i for i in draw.drawn if 0 <= i < V)
        at = torch.tensor(list(counts), dtype=torch.long, device=logits.device)
        times = logits.new_tensor(list(counts.values()))
        logits[at] -= asked.presence_penalty + asked.frequency_penalty * times


def _restrict(logits: Tensor, draw: Draw) -> None:
    """In place: logits [V] of one row."""
    bias = {token: by for token, by in draw.sampling.logit_bias if token < logits.shape[-1]}
    if bias:
        at = torch.tensor(list(bias), device=logits.device)
        logits[at] += logits.new_tensor(list(bias.values()))
    if draw.allowed is not None:
        V = len(draw.allowed)
        logits[:V].masked_fill_(~torch.from_numpy(draw.allowed).to(logits.device), -torch.inf)
        logits[V:] = -torch.inf
