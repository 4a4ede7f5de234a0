"""Answers that are labels: which there are, and how well they were told apart. Pure: ids in, numbers out.

Of a file of classification rows they are what it calls so; of another, answers are labels where they are short and few.
"""

from collections.abc import Sequence

from core.data.batches import Corpus
from core.data.tokens import TokenRow

MOST_LABELS = 100
MOST_TOKENS = 16  # of a label
ROWS_A_LABEL = 2  # on average at least: else answers only happen to be short

Label = tuple[int, ...]


def answer_of(row: TokenRow) -> Label:
    """The learned tokens of a row, from the first to the end of its first answer."""
    learned = row.learned.nonzero()[0]
    if not len(learned):
        return ()
    first, stop = int(learned[0]), int(learned[0])
    while stop < len(row.ids) and row.learned[stop]:
        stop += 1
    return tuple(int(token) for token in row.ids[first:stop])


def labels_of(corpus: Corpus) -> frozenset[Label]:
    """Of classification rows all answers; else the answers where they are two or more, short and few; else none."""
    if len(corpus) and bool((corpus.class_of >= 0).all()):
        return frozenset(map(answer_of, corpus))
    found: set[Label] = set()
    for row in corpus:
        label = answer_of(row)
        if len(label) != int(row.learned.sum()) or not 0 < len(label) <= MOST_TOKENS or len(found) > MOST_LABELS:
            return frozenset()
        found.add(label)
    is_few = 1 < len(found) <= MOST_LABELS and len(corpus) >= ROWS_A_LABEL * len(found)
    return frozenset(found) if is_few else frozenset()


def macro_f1(expected: Sequence[Label], said: Sequence[Label], labels: frozenset[Label]) -> float:
    """The mean of F1 = 2 tp / (2 tp + fp + fn) over the labels that were expected or said, each weighing alike.

    An answer that is no label is a miss of the one expected, and nobody's false alarm.
    """
    seen = {*expected, *said} & labels
    scores = []
    for label in seen:
        pairs = [(want == label, got == label) for want, got in zip(expected, said, strict=True)]
        hits, wanted, got = pairs.count((True, True)), sum(w for w, _ in pairs), sum(g for _, g in pairs)
        scores.append(2 * hits / (wanted + got))
    return sum(sorted(scores)) / len(scores)
