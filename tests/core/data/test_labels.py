"""When answers are labels, and macro-F1 as one counts it by hand."""

import numpy as np
import pytest

from core.data.batches import Corpus
from core.data.labels import answer_of, labels_of, macro_f1
from core.data.tokens import TokenRow

A, B, C = (1,), (2, 3), (9,)


def row(*answers, line=1, label=None):
    """A prompt of two tokens before each answer."""
    ids, learned = [], []
    for answer in answers:
        ids += [7, 8, *answer]
        learned += [False, False, *[True] * len(answer)]
    return TokenRow(line, np.array(ids, np.int32), np.array(learned), label)


def test_the_answer_of_a_row_is_its_first():
    assert answer_of(row(B)) == B
    assert answer_of(row(B, A)) == B
    assert answer_of(row(())) == ()


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([row(A), row(B), row(A), row(B)], {A, B}),
        ([row(A), row(B), row(C)], set()),  # as many answers as rows, nearly
        ([row(A)] * 4, set()),  # nothing to tell apart
        ([row(A), row(B)] * 2 + [row(tuple(range(17)))], set()),  # one is long
        ([row(A), row(B)] * 2 + [row(A, B)], set()),  # two answers in a row
        ([row(A), row(B)] * 2 + [row(())], set()),  # one learns nothing
        ([row((n,)) for n in range(101)] * 3, set()),  # many
    ],
)
def test_answers_are_labels_where_they_are_short_and_few(rows, labels):
    assert labels_of(Corpus.of(rows)) == labels


@pytest.mark.parametrize(
    "answers",
    [[(n,) for n in range(150)], [A, B, C], [A, A], [A, tuple(range(17))]],
    ids=["many", "one row each", "one", "long"],
)
def test_of_classification_rows_all_answers_are_labels(answers):
    """However many they are, as the 150 of CLINC150; the same answers of another format are none."""
    assert labels_of(Corpus.of(row(answer, label=str(answer)) for answer in answers)) == frozenset(answers)
    assert labels_of(Corpus.of(map(row, answers))) == frozenset()


def test_macro_f1_weighs_each_label_alike_however_rare():
    expected, said = [A, A, A, B], [A, A, B, B]
    assert macro_f1(expected, said, frozenset({A, B})) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_what_is_no_label_is_a_miss_and_no_label_of_its_own():
    assert macro_f1([A, B], [A, (5, 5)], frozenset({A, B})) == pytest.approx((1 + 0) / 2)


def test_a_label_that_is_only_said_counts_as_one_that_is_never_right():
    assert macro_f1([A, A], [A, C], frozenset({A, C})) == pytest.approx((2 / 3 + 0) / 2)
