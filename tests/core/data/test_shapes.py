"""The seven formats: what each means, and how its faults are named."""

import pytest

from core.data.faults import FaultyLineError
from core.data.formats import check, read
from core.data.shapes import SPECS
from core.specs.dataset import ChatExample, ClassificationExample, PreferenceExample, PromptExample, TextExample

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PREFERENCE = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [ASSISTANT],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
GOOD = {
    "chat": {"messages": [USER, ASSISTANT]},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "instruction": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "preference": PREFERENCE,
    "classification": {"text": "lost parcel", "label": "delivery"},
    "text": {"text": "Once."},
}


def found(report):
    return [(fault.line, fault.field, fault.code) for fault in report.faults]


def said(example):
    return [(turn.role, turn.content) for turn in example.messages]


def test_every_format_has_an_example_here():
    assert GOOD.keys() == SPECS.keys()


@pytest.mark.parametrize("name", GOOD)
def test_a_format_is_known_by_its_keys(jsonl, name):
    report = check(jsonl(GOOD[name], GOOD[name]))
    assert (report.format, report.n_examples, report.n_faults) == (name, 2, 0)


def test_what_is_written_in_another_formats_words_is_a_conversation(jsonl):
    [(_, example)] = read(jsonl(GOOD["instruction"]))
    assert isinstance(example, ChatExample)
    assert said(example) == [("user", "Add.\n\n1 2"), ("assistant", "3")]
    [(_, example)] = read(jsonl({"instruction": "Sing.", "input": "", "output": "la"}))
    assert said(example) == [("user", "Sing."), ("assistant", "la")]
    published = {"instruction": "Sing.", "input": "", "output": "la", "text": "Below is an instruction. Sing. la"}
    [(_, example)] = read(jsonl(published))
    assert said(example) == [("user", "Sing."), ("assistant", "la")]
    [(_, example)] = read(jsonl({"system": "Be kind.", "id": 7, **GOOD["sharegpt"]}))
    assert said(example) == [("system", "Be kind."), ("user", "q"), ("assistant", "a")]


def test_a_class_a_text_and_a_pair_stay_what_they_are(jsonl):
    [(_, example), (_, numbered)] = read(jsonl(GOOD["classification"], {"text": "x", "label": 3}))
    assert isinstance(example, ClassificationExample)
    assert example.meaning() == PromptExample(prompt="lost parcel\nLabel:", completion=" delivery")
    assert numbered.label == "3"
    assert list(read(jsonl(GOOD["text"]))) == [(1, TextExample(text="Once."))]
    [(_, pair)] = read(jsonl(PREFERENCE))
    assert isinstance(pair, PreferenceExample)
    better, worse = pair.meanings()
    assert (said(better), said(worse)) == (
        [("user", "q"), ("assistant", "a")],
        [("user", "q"), ("assistant", "b")],
    )


def test_of_a_pair_only_the_two_answers_are_learned(jsonl):
    history = PREFERENCE | {"input": {"messages": [USER, ASSISTANT, USER]}}
    [(_, pair)] = read(jsonl(history))
    for example in pair.meanings():
        assert [turn.is_learned for turn in example.messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("line", "field", "code"),
    [
        ({"instruction": "x"}, "/output", "missing_field"),
        ({"instruction": "x", "output": " "}, "/output", "empty_content"),
        ({"instruction": "", "output": "x"}, "/instruction", "empty_content"),
        ({"instruction": "x", "output": "y", "input": 3}, "/input", "wrong_type"),
        ({"instruction": "x", "output": "y", "hint": "z"}, "/hint", "unknown_field"),
        ({"conversations": []}, "/conversations", "empty_messages"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "/conversations/0/from", "last_turn"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "/conversations/0/from", "wrong_role"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "/conversations", "no_user_turn"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]},
            "/conversations/1/value",
            "empty_content",
        ),
        ({"conversations": [{"from": "human", "value": "x"}] * 1025}, "/conversations", "too_many_turns"),
        ({"text": "x", "label": ""}, "/label", "empty_content"),
        ({"text": "x", "label": True}, "/label", "wrong_type"),
        ({"text": "x", "label": None}, "/label", "wrong_type"),
        ({"label": "x"}, "/text", "missing_field"),
        ({"text": " "}, "/text", "empty_content"),
        ({"text": ["x"]}, "/text", "wrong_type"),
        (PREFERENCE | {"preferred_output": []}, "/preferred_output", "one_answer"),
        (PREFERENCE | {"non_preferred_output": [USER]}, "/non_preferred_output", "one_answer"),
        (PREFERENCE | {"preferred_output": [ASSISTANT, USER]}, "/preferred_output", "one_answer"),
        (PREFERENCE | {"non_preferred_output": [ASSISTANT]}, "/non_preferred_output/0/content", "same_answers"),
        (PREFERENCE | {"input": {"messages": [USER, ASSISTANT]}}, "/input/messages/1/role", "last_turn"),
        (PREFERENCE | {"input": {"messages": []}}, "/input/messages", "last_turn"),
        (PREFERENCE | {"input": {"messages": [USER], "tools": [1]}}, "/input/tools", "unknown_field"),
        (PREFERENCE | {"input": "q"}, "/input", "wrong_type"),
        ({"preferred_output": [ASSISTANT], "input": PREFERENCE["input"]}, "/non_preferred_output", "missing_field"),
    ],
)
def test_a_fault_is_named_by_its_field(jsonl, line, field, code):
    assert found(check(jsonl(line))) == [(1, field, code)]


def test_a_wrong_role_is_told_what_was_expected(jsonl):
    [fault] = check(jsonl({"conversations": [{"from": "bot", "value": "x"}]})).faults
    assert fault.message == "role 'bot' is not one of system, human, user, gpt, assistant"


@pytest.mark.parametrize("name", [name for name in GOOD if name != "text"])
def test_formats_are_not_mixed(jsonl, name):
    path = jsonl(GOOD["text"], GOOD[name], GOOD["text"], GOOD[name])
    report = check(path)
    assert found(report) == [(2, "", "mixed_formats"), (4, "", "mixed_formats")]
    assert (report.format, report.n_examples) == ("text", 2)
    with pytest.raises(FaultyLineError, match=f"line 2: this line is of format {name}"):
        list(read(path))


def test_an_unknown_format_is_told_the_known_ones(jsonl):
    [fault] = check(jsonl({"question": "x", "answer": "y"})).faults
    assert fault.code == "unknown_format"
    assert "conversations (ShareGPT)" in fault.message
    assert fault.message.endswith("found the fields question, answer")
