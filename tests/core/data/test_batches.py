import hashlib
import warnings

import numpy as np
import pytest
import torch

from core.data.batches import Corpus, cuts, largest, micro_batches, order
from core.data.tokens import TokenRow
from core.specs.estimate import ScheduleSpec


def rows_of(*lengths):
    rng = np.random.default_rng(0)
    return [
        TokenRow(10 + i, rng.integers(0, 99, n).astype(np.int32), rng.random(n) < 0.5) for i, n in enumerate(lengths)
    ]


def same(a, b):
    return a.line == b.line and (a.ids == b.ids).all() and (a.learned == b.learned).all()


def test_a_corpus_gives_back_its_rows():
    rows = rows_of(3, 1, 7)
    corpus = Corpus.of(iter(rows))
    assert len(corpus) == 3
    assert all(same(a, b) for a, b in zip(corpus, rows, strict=True))
    assert same(corpus[1], rows[1])
    assert corpus.learned_tokens == sum(int(row.learned.sum()) for row in rows)
    assert (corpus[0].ids.dtype, corpus[0].learned.dtype) == (np.int32, np.bool_)


def test_a_corpus_takes_five_bytes_a_token():
    corpus = Corpus.of(rows_of(*[50] * 20))
    assert corpus.ids.nbytes + corpus.learned.nbytes == 5 * 1000


@pytest.mark.parametrize("place", [-1, 3])
def test_a_corpus_has_no_row_outside(place):
    with pytest.raises(IndexError, match="of a corpus of 3"):
        Corpus.of(rows_of(1, 1, 1))[place]


def test_torch_takes_a_corpus_row_without_a_copy_or_a_warning():
    corpus = Corpus.of(rows_of(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(corpus[0].ids)
    assert tensor.data_ptr() == corpus.ids.ctypes.data


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own():
    orders = [order(1000, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(some) == list(range(1000)) for some in orders)
    assert len({tuple(some) for some in orders}) == 4
    assert order(0, 1, 1).tolist() == []
    assert order(1, 1, 1).tolist() == [0]


def test_the_order_is_the_same_for_ever():
    """A run that was stopped goes on in the order that it began with, whatever was installed in between."""
    assert order(10, 1, 2).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]
    digest = hashlib.sha256(order(100_000, 7, 3).tobytes()).hexdigest()
    assert digest == "bed16978ae5ebca6f03bfa9e4a9258e89618fef68f605a64267cebabffd70156"


def test_batches_hold_so_many_tokens_and_keep_the_order():
    rows = rows_of(4, 4, 3, 20, 1, 10, 2)
    batches = micro_batches(rows, 10)
    assert [[len(row.ids) for row in batch] for batch in batches] == [[4, 4], [3], [20], [1], [10], [2]]
    assert [row.line for batch in batches for row in batch] == [row.line for row in rows]
    assert micro_batches([], 10) == []


def test_the_largest_micro_batch_is_that_which_the_runs_own_steps_cut():
    random = np.random.default_rng(3)
    lengths, learned = random.integers(5, 60, 23), random.integers(1, 5, 23)
    schedule = ScheduleSpec(n_epochs=3, batch_size=4, tokens_per_batch=90, seed=11)
    met = []
    for epoch in range(3):
        places = [int(place) for place in order(23, 11, epoch)]
        for start in range(0, 23, 4):
            turn = iter(places[start : start + 4])
            counts = cuts([int(lengths[p]) for p in places[start : start + 4]], 90)
            met += [[next(turn) for _ in range(count)] for count in counts]
    found = largest(lengths, learned, schedule)
    assert found.tokens == max(sum(int(lengths[p]) for p in batch) for batch in met)
    assert found.learned == max(sum(int(learned[p]) for p in batch) for batch in met)
    assert found.squares == max(sum(int(lengths[p]) ** 2 for p in batch) for batch in met)
    assert found.longest_row == lengths.max()
    assert largest(lengths, learned, schedule.model_copy(update={"batch_size": 1})).tokens < found.tokens  # a control
