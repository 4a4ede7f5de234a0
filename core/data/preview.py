"""A dataset's first rows as one base model sees them, and what its tokeniser and chat template say against them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from core.data.doctor import Doctor
from core.data.faults import Fault, Faults
from core.data.formats import Reading
from core.data.tokens import TokenRow, conversations, outcomes
from core.data.word_faults import WordFaults
from core.specs.dataset import Example
from core.specs.preview import NOT_LEARNED, Finding, Preview, PreviewRow, PreviewSpec, PreviewToken

EXAMINED = 1000  # examples that are looked at; a job looks at all
_PARTS = ("chosen", "rejected")


def preview(path: Path, tokenizer: PreTrainedTokenizerFast, asked: PreviewSpec, *, context: int) -> Preview:
    """Looks at the first EXAMINED examples of a file and shows the first rows that can be one.

    context: tokens that the base model can attend to. Raises OSError alone.
    """
    return _Previewer(path, tokenizer, asked, context).done()


class _Previewer:
    """One file, read once: its examples as they are read, its rows as they are encoded."""

    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerFast, asked: PreviewSpec, context: int) -> None:
        self._tokenizer, self._asked, self._context = tokenizer, asked, context
        self._reading, self._doctor, self._errors = Reading(path), Doctor(), Faults()
        self._words = WordFaults(tokenizer)
        self._n_examined = 0

    def done(self) -> Preview:
        shown: list[PreviewRow] = []
        rows = outcomes(self._examples(), self._tokenizer, self._asked.train_on, self._asked.template)
        for place, row in enumerate(rows):
            part = _PARTS[place % 2] if self._reading.format == "preference" else None
            if isinstance(row, Fault):
                self._errors.add(row)
                continue
            self._errors.add(*self._length_faults(row))
            self._doctor.warnings.add(*self._words.of_row(row))
            if len(shown) < self._asked.limit:
                shown.append(self._shown(row, part))
        warnings = self._doctor.warnings
        return Preview(
            format=self._reading.format,
            container=self._reading.container,
            context=self._context,
            max_seq_length=self._asked.max_tokens,
            n_examined=self._n_examined,
            rows=tuple(shown),
            n_errors=self._errors.count,
            errors=_findings(self._errors),
            n_warnings=warnings.count,
            warnings=_findings(warnings),
        )

    def _examples(self) -> Iterator[tuple[int, Example]]:
        for line in islice(self._reading, EXAMINED):
            self._errors.add(*line.faults)
            if line.format is None:
                continue
            self._n_examined += 1
            self._doctor.look(line.number, line.value, line.format)
            self._doctor.warnings.add(*self._words.of_value(line.number, line.value))
            yield from conversations([(line.number, line.example())])

    def _length_faults(self, row: TokenRow) -> Iterator[Fault]:
        n_tokens, room = len(row.ids), self._context - self._asked.prefix_length
        if n_tokens > room:
            yield Fault(row.line, "", "too_long", f"the row has {n_tokens} tokens; the base model has room for {room}")
        elif n_tokens > self._asked.max_tokens:
            lost = int(row.learned[self._asked.max_tokens :].sum())
            message = (
                f"the row has {n_tokens} tokens, {lost} of them learned behind max_seq_length "
                f"{self._asked.max_tokens}: rows are never cut, so a job would refuse it"
            )
            yield Fault(row.line, "", "truncated", message)

    def _shown(self, row: TokenRow, part: str | None) -> PreviewRow:
        ids = row.ids[: self._asked.max_tokens].tolist()
        learned = row.learned[: len(ids)]
        tokens = zip(ids, pieces(ids, self._tokenizer), learned.tolist(), strict=True)
        return PreviewRow.model_validate(
            {
                "line": row.line,
                "part": part,
                "label": row.label,
                "n_tokens": len(row.ids),
                "n_learned": int(row.learned.sum()),
                "truncated": len(row.ids) > len(ids),
                "tokens": [
                    PreviewToken(id=index, text=text, label=index if is_learned else NOT_LEARNED)
                    for index, text, is_learned in tokens
                ],
                "trained_spans": spans(learned),
            }
        )


def spans(learned: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """Runs of learned tokens: the first of each, and one behind its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(learned, np.int8), [0]])))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What each token adds to the text, so that all pieces are the text. Virtual token 0 is written {v0}.

    A token is decoded behind the one before it, since decoders write a word otherwise where a text begins; where it
    ends within a character, its bytes wait for those to come.
    """
    decode = tokenizer.backend_tokenizer.decode
    found: list[str] = []
    before, start = 0, 0  # of the tokens shown last, and of those that are not shown yet
    for place, index in enumerate(ids):
        if index < 0:
            found.append(f"{{v{-1 - index}}}")
            before = start = place + 1
            continue
        shown = decode(list(ids[before:start]), skip_special_tokens=False)
        text = decode(list(ids[before : place + 1]), skip_special_tokens=False)
        ends = place + 1 == len(ids) or ids[place + 1] < 0
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not ends:
            found.append("")
            continue
        found.append(text[len(shown) :])
        before, start = start, place + 1
    return found


def _findings(faults: Faults) -> tuple[Finding, ...]:
    kept = sorted(faults.kept, key=lambda fault: fault.line)
    return tuple(Finding.model_validate(asdict(fault)) for fault in kept)
