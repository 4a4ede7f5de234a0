"""Rows of the validation file that each validation answers for itself: the same rows each time, greedily, as served.

Where the file's answers are labels more rows are asked, so that accuracy and macro-F1 mean something, and from all over
the file, since files are often sorted by label.
Of an ensemble the first member answers: votes are the API's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from core.answering import Question, answers
from core.base.load import OpenBase
from core.data.batches import Corpus
from core.data.labels import Label, answer_of, labels_of, macro_f1
from core.effects import members_of
from core.model import RoutedModel
from core.run import Run
from core.specs.assignment import Sample

ROWS_OF_LABELS = 128  # at least, where there are so many,
ROWS_A_LABEL = 2  # and so many for each label on average,
MOST_ROWS = 1024  # up to these: each is a prompt and a few words
MORE = 8  # tokens that a sample may say beyond what is expected
LONGEST = 256  # tokens of a sample's answer
TEXT_CUT = 2000  # characters: a report is one line, and events are for reading


@dataclass(frozen=True)
class Answered:
    """What was said."""

    samples: tuple[Sample, ...]
    accuracy: float | None
    macro_f1: float | None

    def metrics(self, exact_match: float | None) -> dict[str, float]:
        """Those that there are, by the names of a run's metrics. exact_match: of the whole file."""
        found = {"valid_exact_match": exact_match, "valid_accuracy": self.accuracy, "valid_macro_f1": self.macro_f1}
        return {name: value for name, value in found.items() if value is not None}


class Quiz:
    """Of one validation file."""

    def __init__(self, corpus: Corpus, base: OpenBase) -> None:
        self._corpus, self._tokenizer, self._context = corpus, base.tokenizer, base.facts.context
        self._ends = frozenset(self._tokenizer.all_special_ids)
        self.labels = labels_of(corpus)

    def ask(self, model: RoutedModel, run: Run, heed: Callable[[], object]) -> Answered:
        """What the run's effect of now says. heed: called at each answer, for together they may take long."""
        places = self._places(run.spec.eval_samples)
        expected = [answer_of(self._corpus[place]) for place in places]
        with torch.no_grad():
            worn = members_of(run.method.effect())[0]
        questions = [self._question(place, label, run) for place, label in zip(places, expected, strict=True)]
        said: list[Label] = []
        for answer in answers(model, worn, questions):
            said.append(tuple(answer))
            heed()
        shown = range(min(len(places), run.spec.eval_samples))
        samples = tuple(self._sample(questions[place], expected[place], said[place]) for place in shown)
        if not self.labels:
            return Answered(samples, None, None)
        right = sum(want == got for want, got in zip(expected, said, strict=True))
        return Answered(samples, right / len(places), macro_f1(expected, said, self.labels))

    def _places(self, samples: int) -> list[int]:
        """Of the rows that are asked, in order: without labels the first ones, with labels more, evenly apart."""
        n = len(self._corpus)
        if not self.labels:
            return list(range(min(n, samples)))
        wanted = min(MOST_ROWS, max(ROWS_OF_LABELS, ROWS_A_LABEL * len(self.labels)))
        count = min(n, max(samples, wanted))
        return [number * n // count for number in range(count)]

    def _question(self, place: int, label: Label, run: Run) -> Question:
        row = self._corpus[place]
        ids = [int(token) for token in row.ids[: int(row.learned.argmax())]] if label else []
        room = self._context - run.spec.method.prefix_length - len(ids)
        # A row that learns nothing is asked nothing.
        limit = min(len(label) + MORE, LONGEST, room) if ids else 0
        return Question(ids, limit, self._ends)

    def _sample(self, question: Question, expected: Label, said: Label) -> Sample:
        return Sample(prompt=self._text(question.ids), expected=self._text(expected), said=self._text(said))

    def _text(self, ids: Sequence[int]) -> str:
        """Special tokens too: whether an answer ends is part of it."""
        return str(self._tokenizer.decode([token for token in ids if token >= 0]))[:TEXT_CUT]
