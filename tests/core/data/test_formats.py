import gzip
import json

import pytest

from core.data import containers, json_lines
from core.data.faults import Fault, FaultyLineError
from core.data.formats import check, read
from core.specs.dataset import MAX_TURNS, ChatExample, PromptExample

GOOD_CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
GOOD_PROMPT = {"prompt": "2 + 2 =", "completion": " 4"}


def found(report):
    return [(fault.line, fault.field, fault.code) for fault in report.faults]


def test_conversations_are_read_as_they_were_written(jsonl):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "x", "weight": 0},
        {"role": "user", "content": "naïve 😀 \u0000"},
        {"role": "assistant", "content": " y ", "weight": 1},
    ]
    path = jsonl({"messages": turns}, GOOD_CHAT)

    report = check(path)
    examples = list(read(path))

    assert (report.format, report.n_examples, report.n_faults, report.faults) == ("chat", 2, 0, ())
    assert [line for line, _ in examples] == [1, 2]
    assert isinstance(examples[0][1], ChatExample)
    assert [turn.model_dump(exclude_none=True) for turn in examples[0][1].messages] == turns
    assert [turn.is_learned for turn in examples[0][1].messages] == [False, False, False, False, True]


def test_prompts_and_completions_are_read_as_they_were_written(jsonl):
    path = jsonl(GOOD_PROMPT, {"completion": "\n", "prompt": " "})
    assert check(path).format == "prompt_completion"
    assert list(read(path)) == [(1, PromptExample(**GOOD_PROMPT)), (2, PromptExample(prompt=" ", completion="\n"))]


def test_blank_lines_are_skipped_but_counted(jsonl):
    path = jsonl(b"", GOOD_CHAT, b" \t\r", b"", GOOD_CHAT)
    assert check(path).n_examples == 2
    assert [line for line, _ in read(path)] == [2, 5]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_either_line_end_will_do_and_the_last_may_lack_one(jsonl, end):
    path = jsonl(GOOD_PROMPT, GOOD_PROMPT, end=end)
    path.write_bytes(path.read_bytes().removesuffix(end))
    assert (check(path).n_examples, check(path).n_faults) == (2, 0)


@pytest.mark.parametrize(
    ("line", "field", "code"),
    [
        (b"garbage", "", "invalid_json"),
        (b'{"messages": [', "", "invalid_json"),
        (b'{"prompt": "a", "completion": "b"} x', "", "invalid_json"),
        (b'{"prompt": "a\nb", "completion": "b"}'.replace(b"\n", b"\x00"), "", "invalid_json"),
        (b"[1]", "", "not_an_object"),
        (b"null", "", "not_an_object"),
        (b'"text"', "", "not_an_object"),
        (b'{"words": "a"}', "", "unknown_format"),
        (b"{}", "", "unknown_format"),
        (b'{"prompt": "a", "completion": "\xff"}', "", "invalid_utf8"),
        (b'{"prompt": "a", "completion": "\xed\xa0\x80"}', "", "invalid_utf8"),
        (b'{"prompt": NaN, "completion": "b"}', "/prompt", "number"),
        (b'{"prompt": "a", "completion": -Infinity}', "/completion", "number"),
        (b'{"prompt": "a", "completion": [1e999]}', "/completion/0", "number"),
        (b'{"prompt": "a", "completion": 9007199254740993}', "/completion", "number"),
        (b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}", "/completion", "number"),
        (b'{"prompt": "a", "prompt": "a", "completion": "b"}', "/prompt", "duplicate_key"),
        (b'{"prompt": "\\ud800", "completion": "b"}', "/prompt", "lone_surrogate"),
        (b'{"prompt": "a", "completion": "b", "\\udfff": 1}', "", "lone_surrogate"),
        (b'{"prompt": "a", "completion": ' + b"[" * 40 + b"]" * 40 + b"}", "/completion" + "/0" * 32, "nesting"),
        (b"[" * 100_000 + b"]" * 100_000, "", "nesting"),
        (b'{"prompt": "a"}', "/completion", "missing_field"),
        (b'{"prompt": "", "completion": "b"}', "/prompt", "empty_content"),
        (b'{"prompt": "a", "completion": ""}', "/completion", "empty_content"),
        (b'{"prompt": "a", "completion": 7}', "/completion", "wrong_type"),
        (b'{"prompt": "a", "completion": "b", "a/b~": 1}', "/a~1b~0", "unknown_field"),
        (GOOD_CHAT | {"tools": []}, "/tools", "unknown_field"),
        (GOOD_CHAT | {"prompt": "a"}, "/prompt", "unknown_field"),
        ({"messages": "hi"}, "/messages", "wrong_type"),
        ({"messages": []}, "/messages", "empty_messages"),
        ({"messages": ["hi"]}, "/messages/0", "wrong_type"),
    ],
)
def test_a_faulty_line_is_named_with_its_field(jsonl, line, field, code):
    report = check(jsonl(b"", line, GOOD_PROMPT))
    assert found(report) == [(2, field, code)]
    assert report.n_examples == 1


@pytest.mark.parametrize(
    ("turns", "field", "code"),
    [
        ([("bot", "x"), ("assistant", "y")], "/messages/0/role", "wrong_role"),
        ([("user", "x"), ("assistant", "")], "/messages/1/content", "empty_content"),
        ([("user", "x"), ("assistant", " \n")], "/messages/1/content", "empty_content"),
        ([("user", "x"), ("assistant", "y"), ("user", "z")], "/messages/2/role", "last_turn"),
        ([("system", "x"), ("assistant", "y")], "/messages", "no_user_turn"),
        ([("user", "x"), ("assistant", ["y"])], "/messages/1/content", "wrong_type"),
        ([("user", None), ("assistant", "y")], "/messages/0/content", "wrong_type"),
        ([(["user"], "x"), ("assistant", "y")], "/messages/0/role", "wrong_role"),
        ([("user", "x"), ("assistant", "y")] * MAX_TURNS, "/messages", "too_many_turns"),
    ],
)
def test_a_faulty_turn_is_named_with_its_place(jsonl, chat, turns, field, code):
    assert found(check(jsonl(GOOD_CHAT, chat(*turns)))) == [(2, field, code)]


@pytest.mark.parametrize(
    ("turn", "field", "code"),
    [
        ({"role": "assistant"}, "/messages/1/content", "missing_field"),
        ({"content": "x"}, "/messages/1/role", "missing_field"),
        ({"role": "assistant", "content": "x", "tool_calls": []}, "/messages/1/tool_calls", "unknown_field"),
        ({"role": "assistant", "content": "x", "weight": 2}, "/messages/1/weight", "wrong_value"),
        ({"role": "assistant", "content": "x", "weight": True}, "/messages/1/weight", "wrong_type"),
        ({"role": "assistant", "content": "x", "weight": 1.0}, "/messages/1/weight", "wrong_type"),
        ({"role": "user", "content": "x", "weight": 1}, "/messages/1/weight", "misplaced_weight"),
        ({"role": "assistant", "content": "x", "weight": 0}, "/messages", "nothing_to_learn"),
    ],
)
def test_the_fields_of_a_turn_are_checked(jsonl, turn, field, code):
    messages = [{"role": "user", "content": "hi"}, turn]
    if code not in ("nothing_to_learn", "missing_field"):
        messages.append({"role": "assistant", "content": "bye"})
    assert found(check(jsonl({"messages": messages}))) == [(1, field, code)]


def test_every_fault_of_a_line_is_told(jsonl, chat):
    report = check(jsonl(chat(("bot", "x"), ("user", 3), ("assistant", " ")) | {"tools": []}))
    assert found(report) == [
        (1, "/messages/0/role", "wrong_role"),
        (1, "/messages/1/content", "wrong_type"),
        (1, "/messages/2/content", "empty_content"),
        (1, "/tools", "unknown_field"),
    ]


def test_a_message_names_the_faulty_word_but_not_more(jsonl, chat):
    [fault] = check(jsonl(chat(("bot\n" + "x" * 500, "x"), ("assistant", "y")))).faults
    assert fault.message.startswith("role 'bot\N{REPLACEMENT CHARACTER}xxx")
    assert len(fault.message) < 150


def test_the_place_of_a_byte_that_is_not_text_is_told(jsonl):
    [fault] = check(jsonl(GOOD_PROMPT, b'{"prompt": "\xe9"}')).faults
    assert fault == Fault(2, "", "invalid_utf8", "byte 13 of the line (0xe9) is not UTF-8")


def test_formats_may_not_be_mixed_and_the_first_good_line_decides(jsonl):
    report = check(jsonl(b"{}", GOOD_PROMPT, GOOD_CHAT, GOOD_PROMPT))
    assert found(report) == [(1, "", "unknown_format"), (3, "", "mixed_formats")]
    assert (report.format, report.n_examples) == ("prompt_completion", 2)


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n\t"])
def test_a_file_without_examples_is_a_fault(jsonl, content):
    path = jsonl()
    path.write_bytes(content)
    assert found(check(path)) == [(1, "", "empty_file")]
    with pytest.raises(FaultyLineError, match="no example"):
        list(read(path))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04\x14\x00rest", "zip"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "gzip archive within"),
        ('{"prompt": "a"}'.encode("utf-16"), "UTF-16"),
        (json.dumps([GOOD_CHAT, GOOD_CHAT]).encode(), "JSON array"),
        (b"[\n" + json.dumps(GOOD_CHAT).encode() + b"\n]", "JSON array"),
        (json.dumps(GOOD_CHAT, indent=2).encode(), "several lines"),
        (b"<!doctype html>\n<p>", "HTML"),
    ],
)
def test_a_file_of_another_kind_is_named_once(jsonl, content, kind):
    path = jsonl()
    path.write_bytes(content)
    [fault] = check(path).faults
    assert (fault.line, fault.code) == (1, "not_json_lines")
    assert kind in fault.message


def test_a_byte_order_mark_is_a_fault_and_the_lines_are_still_read(jsonl):
    report = check(jsonl(b"\xef\xbb\xbf" + json.dumps(GOOD_CHAT).encode(), b"{}"))
    assert found(report) == [(1, "", "byte_order_mark"), (2, "", "unknown_format")]
    assert report.n_examples == 1


def test_all_faults_are_counted_and_the_first_hundred_kept(jsonl):
    report = check(jsonl(*[b"{}"] * 250, GOOD_CHAT))
    assert (report.n_faults, report.n_examples) == (250, 1)
    assert [fault.line for fault in report.faults] == list(range(1, 101))


def test_a_line_of_the_greatest_length_passes_and_one_byte_more_does_not(jsonl):
    frame = len(json.dumps({"prompt": "", "completion": "b"}))
    longest = {"prompt": "a" * (json_lines.MAX_LINE_BYTES - frame), "completion": "b"}
    longer = longest | {"completion": "bb"}
    report = check(jsonl(longest, longer, GOOD_PROMPT, end=b"\r\n"))
    assert found(report) == [(2, "", "line_too_long")]
    assert report.n_examples == 2


def test_lines_beyond_the_bound_end_the_reading(jsonl, monkeypatch):
    monkeypatch.setattr(containers, "MAX_LINES", 3)
    assert found(check(jsonl(b"", b"", GOOD_CHAT, b"", b"garbage"))) == [(4, "", "too_many_lines")]


def test_reading_stops_at_the_first_faulty_line(jsonl):
    rows = read(jsonl(GOOD_CHAT, b"{}"))
    assert next(rows)[0] == 1
    with pytest.raises(FaultyLineError, match="line 2: no known format") as caught:
        next(rows)
    assert caught.value.fault.code == "unknown_format"
