"""Rows that are only read: what the model makes of their tokens, or how likely it held them. Nothing is drawn.

A row may come in chunks, between other rows' tokens. A chunk's part is worked out first and added once its whole step
has gone well, so that a step that is run again counts once.
"""

import base64
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from core.model import RoutedModel
from worker.engine.likelihood import Told, tell

ROWS_OF_LOGITS = 64  # at once: [64, V] and not [N, V]


@dataclass(frozen=True, slots=True)
class Part:
    """What one chunk gives: a sum of hidden states [H] in fp32, or its tokens' likelihoods."""

    total: Tensor | None = None
    told: tuple[Told, ...] = ()


@dataclass(slots=True)
class Reading:
    """What is wanted of a row, and what has been found. of: which of its tokens, in its template."""

    what: Literal["embedding", "likelihood"]
    top: int = 0  # of the likeliest tokens beside each
    of: range = range(0)
    _total: Tensor | None = None
    _told: list[Told] = field(default_factory=list)

    def part(self, model: RoutedModel, hidden: Tensor, ids: list[int], start: int) -> Part:
        """Of one chunk: hidden [n, H] of the tokens from start on; ids are the whole row's.

        Semantics: embedding adds up the hidden states of the wanted tokens; likelihood reads each wanted token in the
        logits of the one before it.
        """
        stop = start + len(hidden)
        if self.what == "embedding":
            first, last = max(self.of.start, start), min(self.of.stop, stop)
            return Part(hidden[first - start : max(last, first) - start].float().sum(0))
        wanted = [t for t in self.of if start < t <= stop]
        told = [Told(ids[0], None)] if start == 0 and 0 in self.of else []
        for at in range(0, len(wanted), ROWS_OF_LOGITS):
            some = wanted[at : at + ROWS_OF_LOGITS]
            logits = model.logits(hidden[torch.tensor(some, device=hidden.device) - 1 - start])  # [64, V]
            told += tell(logits, [ids[t] for t in some], [self.top] * len(some))
        return Part(told=tuple(told))

    def add(self, part: Part) -> None:
        """A chunk has run."""
        self._told += part.told
        if part.total is not None:
            self._total = part.total if self._total is None else self._total + part.total

    @property
    def is_finite(self) -> bool:
        """Whether what has been found so far is made of numbers."""
        if self._total is not None and not bool(torch.isfinite(self._total).all()):
            return False
        return all(t.logprob is None or math.isfinite(t.logprob) for t in self._told)

    @property
    def told(self) -> list[Told] | None:
        """How likely each wanted token was, in order."""
        return self._told if self.what == "likelihood" else None

    def embedding(self) -> str | None:
        """The mean of the wanted tokens' hidden states, of length 1, as base64 of float32."""
        if self._total is None:
            return None
        mean = self._total / len(self.of)
        # The length is found of what has been divided by its largest part, so that no square overflows.
        scaled = mean / mean.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        unit = scaled / scaled.norm().clamp(min=torch.finfo(torch.float32).tiny)
        return base64.b64encode(unit.cpu().numpy().astype("<f4").tobytes()).decode()
