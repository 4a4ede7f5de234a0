"""Rows in a method's template: serving's ids between its two sides, then the answer, and nothing else is learned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.base.words import Words
from core.data.amounts import measure
from core.data.tokens import TooLongError, encode, encode_prompt
from core.specs.dataset import ChatExample, PromptExample
from core.specs.generation import ChatMessage
from core.specs.template import in_front, parse

TEMPLATES = (
    "{v:3}{input}{target}",
    "{v:2}{input}{v:1}{target}",
    "the order {v:1}{input} where?{v:2} ({target}",
    "{input}<|im_end|></s>{v:4}{target}",
    "{{order}} {v:1}\n{input}{target}",
)
PARTED = TEMPLATES[1:4]  # something stands between input and target


def conversation(*contents, weights=None):
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    for turn, weight in (weights or {}).items():
        messages[turn]["weight"] = weight
    return ChatExample.model_validate({"messages": messages})


def row_of(some, tokenizer, template=None, **asked):
    asked = {"train_on": "assistant", "max_tokens": 10_000} | asked
    return encode(some, tokenizer, template=template and parse(template), **asked)


def layout_of(template, tokenizer):
    return parse(template).layout(Words(tokenizer).within)


def asked_of(some, turns):
    return [ChatMessage(role=turn.role, content=turn.content) for turn in some.messages[:turns]]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("ab 1\n<|im_end|></s>é", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=4))
def test_a_row_begins_with_what_serving_sends_between_the_templates_sides(tokenizers, template, contents):
    some = conversation(*contents[: len(contents) // 2 * 2])
    asked = asked_of(some, len(some.messages) - 1)
    for name, tokenizer in tokenizers.items():
        served = layout_of(template, tokenizer).around(encode_prompt(asked, tokenizer))
        row = row_of(some, tokenizer, template, train_on="last")
        assert row.ids[: len(served)].tolist() == served, name
        assert not row.learned[: len(served)].any(), name
        assert row.learned[len(served)], name


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_completion_stands_behind_its_prompt_in_the_template(tokenizers, template):
    for name, tokenizer in tokenizers.items():
        some = PromptExample(prompt="the order</s>", completion=" has arrived\n")
        plain, row = row_of(some, tokenizer), row_of(some, tokenizer, template)
        served = layout_of(template, tokenizer).around(encode_prompt(some.prompt, tokenizer))
        assert row.ids.tolist() == [*served, *plain.ids[plain.learned].tolist()], name
        assert row.learned.tolist() == [False] * len(served) + [True] * int(plain.learned.sum()), name


def test_a_base_models_facts_write_the_same_layout(tokenizers, new_base):
    from core.base.facts import facts_of  # noqa: PLC0415 - torch, for this test alone

    for tokenizer in tokenizers.values():
        facts = facts_of(new_base(), tokenizer)
        for template in TEMPLATES:
            assert parse(template).layout(facts.encode) == layout_of(template, tokenizer)


def test_special_tokens_in_anchors_are_text(tokenizers):
    tokenizer = tokenizers["chatml"]
    layout = layout_of(TEMPLATES[3], tokenizer)
    assert tokenizer.eos_token_id not in layout.after
    assert [i for i in layout.after if i < 0] == [-1, -2, -3, -4]
    # Negative control: the tokeniser itself makes one.
    assert (
        tokenizer.eos_token_id
        in parse(TEMPLATES[3]).layout(lambda text: tokenizer.encode(text, add_special_tokens=False)).after
    )


def test_an_anchor_begins_without_the_blank_of_a_documents_first_word(tokenizers):
    tokenizer = tokenizers["mistral"]
    assert tokenizer.convert_ids_to_tokens(layout_of("hi{v:1}{input} hi{target}", tokenizer).before[:1]) == ["hi"]
    assert tokenizer.convert_ids_to_tokens(layout_of("{v:1}{input} hi{target}", tokenizer).after) == ["▁hi"]


def test_virtual_tokens_in_front_leave_the_row_and_every_learned_answer_as_they_are(tokenizers):
    some = conversation("hi", "the order", "hi there", "yes")
    for tokenizer in tokenizers.values():
        for train_on in ("assistant", "last"):
            plain = row_of(some, tokenizer, train_on=train_on)
            row = row_of(some, tokenizer, TEMPLATES[0], train_on=train_on)
            assert row.ids.tolist() == [-1, -2, -3, *plain.ids.tolist()]
            assert row.learned.tolist() == [False] * 3 + plain.learned.tolist()
            assert encode(some, tokenizer, train_on=train_on, max_tokens=999, template=in_front(3)).ids.tolist() == (
                row.ids.tolist()
            )


@pytest.mark.parametrize("template", PARTED)
def test_where_input_and_target_are_parted_only_the_last_learned_answer_is_learned(tokenizers, template):
    some = conversation("hi", "the order", "hi there", "yes", "the", "no", weights={5: 0})
    for name, tokenizer in tokenizers.items():
        row = row_of(some, tokenizer, template)
        served = layout_of(template, tokenizer).around(encode_prompt(asked_of(some, 3), tokenizer))
        assert row.ids[: len(served)].tolist() == served, name
        (first, *_), last = np.flatnonzero(row.learned), np.flatnonzero(row.learned)[-1]
        assert first == len(served), name
        assert row.learned[first : last + 1].all(), name
        assert "yes" in tokenizer.decode(row.ids[first : last + 1]), name
        assert "no" not in tokenizer.decode(row.ids[first:]), name


def test_virtual_tokens_and_anchors_count_against_the_longest_row(tokenizers, jsonl, chat):
    tokenizer = tokenizers["chatml"]
    some, template = conversation("hi", "yes"), parse(TEMPLATES[2])
    length = len(row_of(some, tokenizer).ids) + len(layout_of(TEMPLATES[2], tokenizer))
    assert len(row_of(some, tokenizer, TEMPLATES[2], max_tokens=length).ids) == length
    with pytest.raises(TooLongError):
        row_of(some, tokenizer, TEMPLATES[2], max_tokens=length - 1)
    path = jsonl(chat("hi", "yes"))
    assert measure(path, tokenizer, length - 1, template=template).too_long == ((1, length),)
    assert measure(path, tokenizer, length, template=template).n_too_long == 0
    # Negative control: the plain row would have passed.
    assert measure(path, tokenizer, length - 1).n_too_long == 0
    assert measure(path, tokenizer, None, template=template).tokens == length
