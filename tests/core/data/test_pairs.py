"""Preference pairs as token rows, and classes as a corpus keeps them."""

import numpy as np
import pytest

from core.data.batches import Corpus
from core.data.formats import read
from core.data.pairs import encode_pairs
from core.data.tokens import TooLongError, UnusableExampleError, encode, encode_all, encode_prompt
from core.specs.dataset import PreferenceExample
from core.specs.generation import ChatMessage
from core.specs.template import parse

HISTORY = [("user", "hi"), ("assistant", "yes"), ("user", "where is the order")]


def pair(better="it has arrived", worse="no"):
    return PreferenceExample.model_validate(
        {
            "input": {"messages": [{"role": role, "content": content} for role, content in HISTORY]},
            "preferred_output": [{"role": "assistant", "content": better}],
            "non_preferred_output": [{"role": "assistant", "content": worse}],
        }
    )


def test_both_rows_of_a_pair_begin_with_what_serving_sends_and_learn_their_answer_alone(tokenizers):
    for name, tokenizer in tokenizers.items():
        [row] = encode_pairs([(7, pair())], tokenizer, max_tokens=500)
        assert (row.line, row.chosen.line, row.rejected.line) == (7, 7, 7)
        asked = encode_prompt([ChatMessage(role=role, content=content) for role, content in HISTORY], tokenizer)
        for one in (row.chosen, row.rejected):
            assert one.ids[: len(asked)].tolist() == asked, name
            assert not one.learned[: len(asked)].any(), name
            assert one.learned[len(asked)], name
        said = [tokenizer.decode(one.ids[one.learned]) for one in (row.chosen, row.rejected)]
        assert "it has arrived" in said[0]
        assert "it has arrived" not in said[1]


def test_a_pair_is_its_two_conversations_alone(tokenizers):
    pairs = [(line, pair(f"yes {line}", "no")) for line in range(1, 200)]
    tokenizer = tokenizers["chatml"]
    rows = list(encode_pairs(pairs, tokenizer, max_tokens=500))
    assert [row.line for row in rows] == list(range(1, 200))
    for row, (_, one) in zip(rows[::41], pairs[::41], strict=True):
        for found, meant in zip((row.chosen, row.rejected), one.meanings(), strict=True):
            alone = encode(meant, tokenizer, train_on="last", max_tokens=500)
            assert (found.ids == alone.ids).all()
            assert (found.learned == alone.learned).all()


def test_a_pair_of_which_one_answer_is_too_long_is_refused(tokenizers):
    with pytest.raises(TooLongError, match="line 3"):
        list(encode_pairs([(3, pair(worse="no " * 300))], tokenizers["chatml"], max_tokens=200))


def test_virtual_tokens_stand_in_both_rows(tokenizers):
    template = parse("{v:2}{input}{v:1}{target}")
    [row] = encode_pairs([(1, pair())], tokenizers["chatml"], max_tokens=500, template=template)
    for one in (row.chosen, row.rejected):
        assert one.ids[:2].tolist() == [-1, -2]
        assert one.ids[np.flatnonzero(one.learned)[0] - 1] == -3


def test_a_pair_is_not_one_row(tokenizers):
    with pytest.raises(UnusableExampleError, match="two rows"):
        encode(pair(), tokenizers["chatml"], train_on="last", max_tokens=500)


def test_a_corpus_knows_which_rows_are_classes_and_their_lines(jsonl, tokenizers):
    labels = ["billing", "delivery", "billing", 3]
    path = jsonl(*({"text": f"order {n}", "label": label} for n, label in enumerate(labels)))
    rows = encode_all(read(path), tokenizers["chatml"], train_on="assistant", max_tokens=100)
    corpus = Corpus.of(rows)
    assert corpus.classes == ("billing", "delivery", "3")
    assert corpus.class_of.tolist() == [0, 1, 0, 2]
    assert [(row.line, row.label) for row in corpus] == [(1, "billing"), (2, "delivery"), (3, "billing"), (4, "3")]
    for row in corpus:
        said = tokenizers["chatml"].decode(row.ids[row.learned])
        assert said == f" {row.label}<|im_end|>"
        prompt = encode_prompt(f"order {row.line - 1}\nLabel:", tokenizers["chatml"])
        assert row.ids[: len(prompt)].tolist() == prompt


def test_rows_of_other_formats_have_no_class(jsonl, tokenizers):
    path = jsonl({"prompt": "a", "completion": "b"})
    corpus = Corpus.of(encode_all(read(path), tokenizers["chatml"], train_on="assistant", max_tokens=100))
    assert (corpus.classes, corpus.class_of.tolist(), corpus[0].label) == ((), [-1], None)
