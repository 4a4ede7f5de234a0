"""How much a dataset is to one base model: its tokens, its rows' lengths, what is too long. Keeps no row."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from core.data.faults import MAX_FAULTS_KEPT, Fault
from core.data.formats import read
from core.data.tokens import TrainOn, conversations, outcomes
from core.specs.template import Template


@dataclass(frozen=True, eq=False)
class Measure:
    """What a whole file is to a base model. faults: other reasons why a line cannot be used, the first 100."""

    lengths: NDArray[np.int64]  # [B] tokens of each row
    learned: NDArray[np.int64]  # [B] of them learned
    n_examples: int  # B, and the faults
    too_long: tuple[tuple[int, int], ...]  # (line, tokens), the first 100
    n_too_long: int
    faults: tuple[Fault, ...]

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return int(self.lengths.sum())

    @property
    def learned_tokens(self) -> int:
        """Of all rows."""
        return int(self.learned.sum())


def _nothing() -> None:
    return None


def measure(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int | None,
    *,
    train_on: TrainOn = "assistant",
    template: Template | None = None,
    first: int | None = None,
    heed: Callable[[], object] = _nothing,
) -> Measure:
    """Reads a checked file and counts, virtual tokens and anchors too. Holds a few rows, and 16 bytes of every one.

    first: how many examples are read, None for all. max_tokens None finds nothing too long. A preference pair is two
    rows of one line. heed: called after every row; what it raises ends the reading.

    Raises:
        FaultyLineError: the file would not pass formats.check.

    """
    count = n_too_long = 0
    counts = bytearray()
    too_long: list[tuple[int, int]] = []
    faults: list[Fault] = []
    for row in outcomes(islice(conversations(read(path)), first), tokenizer, train_on, template):
        count += 1
        heed()
        if isinstance(row, Fault):
            faults += [row] if len(faults) < MAX_FAULTS_KEPT else []
            continue
        counts += np.array([len(row.ids), row.learned.sum()], np.int64).tobytes()
        if max_tokens is not None and len(row.ids) > max_tokens:
            n_too_long += 1
            too_long += [(row.line, len(row.ids))] if len(too_long) < MAX_FAULTS_KEPT else []
    lengths, learned = np.frombuffer(counts, np.int64).reshape(-1, 2).T
    return Measure(lengths, learned, count, tuple(too_long), n_too_long, tuple(faults))
