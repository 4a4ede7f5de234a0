"""The data doctor: twelve faults are planted, one after another, and each is found at its line."""

import json

import pytest
from tokenizers import normalizers

from core.data.doctor import REMEMBERED, Doctor
from core.data.formats import check
from core.data.json_lines import MAX_LINE_BYTES
from core.data.preview import preview
from core.specs.preview import PreviewSpec

CONTEXT, ROOM = 400, 200
PLAIN = {
    "messages": [{"role": "user", "content": "where is the order"}, {"role": "assistant", "content": "it has arrived"}]
}
DOUBLE_BOS = (
    "{{ bos_token + bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '\n' + m['content'] + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant\n' }}{% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
HIDDEN = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}{{ 'A' if add_generation_prompt }}"
HEADED = ["<unk>", "<s>", "</s>", "<|head|>", "<|/head|>", "<|eot|>"]


def answered(question="hi", answer="yes", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def turns(*roles):
    return {"messages": [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]}


def examined(path, tokenizer):
    asked = PreviewSpec(base_model="any", max_tokens=ROOM)
    found = preview(path, tokenizer, asked, context=CONTEXT)
    errors = {(finding.code, finding.line) for finding in found.errors}
    warnings = {(finding.code, finding.line) for finding in found.warnings}
    return errors, warnings


@pytest.fixture
def tokenizer_of(make_tokenizer):
    """The tokeniser into which a fault of the base model's is planted."""

    def make(fault):
        match fault:
            case "double_bos":
                return make_tokenizer(DOUBLE_BOS, HEADED)
            case "no_end":
                return make_tokenizer(NO_END)
            case "hidden_answer":
                return make_tokenizer(HIDDEN)
            case "pad_is_end":
                tokenizer = make_tokenizer()
                tokenizer.pad_token = tokenizer.eos_token
                return tokenizer
            case "all_masked":
                tokenizer = make_tokenizer()
                tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
                return tokenizer
        return make_tokenizer()

    return make


LONG = " ".join(["order"] * 250)  # more than ROOM, and than CONTEXT where it stands twice
# What is planted, into which line; the fault's code, whether it stops a job, and whether the base model is at fault.
FAULTS = [
    ("double BOS, by the template", PLAIN, "double_bos", False, True),
    ("double BOS, by the data", answered("<|im_start|>hi"), "double_bos", False, False),
    ("no EOS", PLAIN, "no_end", True, True),
    ("all masked, by the data", answered(weight=0), "nothing_to_learn", True, False),
    ("template without a place for answers", PLAIN, "hidden_answer", True, True),
    ("mixed schema", {"prompt": "a", "completion": "b"}, "mixed_formats", True, False),
    ("pad is EOS", PLAIN, "pad_is_end", False, True),
    ("truncation", answered(LONG), "truncated", True, False),
    ("duplicate", PLAIN, "duplicate", False, False),
    ("empty answer", answered(answer=""), "empty_content", True, False),
    ("empty question", answered(question=""), "blank_text", False, False),
    ("role order", turns("user", "user", "assistant"), "role_order", False, False),
    ("not UTF-8", b'{"messages": "\xff"}', "invalid_utf8", True, False),
    ("overlong line", b" " * (MAX_LINE_BYTES + 1) + b"{", "line_too_long", True, False),
    ("overlong row", answered(LONG + LONG), "too_long", True, False),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found_at_its_line_and_nothing_else_is(jsonl, tokenizer_of, fault):
    _, planted, code, stops, is_of_the_base = fault
    sound = [PLAIN, answered("a", "b"), answered("c", "d")]
    assert examined(jsonl(*sound), tokenizer_of("none")) == (set(), set())
    if is_of_the_base:
        errors, warnings = examined(jsonl(*sound), tokenizer_of(code))
        lines = {1} if code == "pad_is_end" else {1, 2, 3}
    else:
        errors, warnings = examined(jsonl(*sound[:2], planted, *sound[2:]), tokenizer_of("none"))
        lines = {3}
    found = {(code, line) for line in lines}
    assert (errors, warnings) == ((found, set()) if stops else (set(), found))


def test_a_row_of_which_no_token_would_be_learned_is_found(jsonl, tokenizer_of):
    path = jsonl({"text": "the order"}, {"text": "xx"}, {"text": "b"})
    assert examined(path, tokenizer_of("all_masked")) == ({("all_masked", 2)}, set())
    assert examined(path, tokenizer_of("none")) == (set(), set())


def test_a_template_without_generation_tags_is_no_fault_here(jsonl, tokenizer):
    """Answers are found by marks, so {% generation %} is not needed: the mask is whole."""
    assert "generation %}" not in tokenizer.chat_template.replace("add_generation_prompt", "")
    found = preview(jsonl(PLAIN), tokenizer, PreviewSpec(base_model="any", max_tokens=ROOM), context=CONTEXT)
    [row] = found.rows
    assert "".join(token.text for token in row.tokens if token.label != -100) == "it has arrived<|im_end|>"


def test_where_pad_is_end_the_end_is_learned_all_the_same(jsonl, tokenizer_of):
    tokenizer = tokenizer_of("pad_is_end")
    found = preview(jsonl(PLAIN), tokenizer, PreviewSpec(base_model="any", max_tokens=ROOM), context=CONTEXT)
    assert [t.label for t in found.rows[0].tokens].count(tokenizer.eos_token_id) == 1


def test_what_is_odd_is_told_with_the_upload(jsonl):
    lines = [PLAIN, PLAIN, turns("assistant", "user", "assistant"), turns("user", "assistant", "system", "assistant")]
    report = check(jsonl(*lines, answered(question=" ")))
    assert report.n_faults == 0
    assert [(fault.line, fault.field, fault.code) for fault in report.warnings] == [
        (2, "", "duplicate"),
        (3, "/messages/0/role", "role_order"),
        (4, "/messages/2/role", "role_order"),
        (5, "/messages/0/content", "blank_text"),
    ]
    assert report.warnings[0].message == "the example is the same as that of line 1"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"prompt": " ", "completion": "x"}, "/prompt"),
        ({"prompt": "x", "completion": "\n"}, "/completion"),
        ({"instruction": " ", "output": "x"}, "/instruction"),
        ({"text": " ", "label": "x"}, "/text"),
        ({"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "x"}]}, "/conversations/0/value"),
        (
            {
                "input": {"messages": [{"role": "user", "content": ""}]},
                "preferred_output": [{"role": "assistant", "content": "x"}],
                "non_preferred_output": [{"role": "assistant", "content": "y"}],
            },
            "/input/messages/0/content",
        ),
    ],
)
def test_blank_texts_of_every_format_are_told(jsonl, line, field):
    report = check(jsonl(line))
    assert [(fault.field, fault.code) for fault in report.warnings] == [(field, "blank_text")]


@pytest.mark.parametrize(
    "roles",
    [
        ("user", "assistant"),
        ("system", "user", "assistant", "user", "assistant"),
        ("user", "assistant", "user", "assistant"),
    ],
)
def test_turns_in_order_are_not_odd(jsonl, roles):
    assert check(jsonl(turns(*roles))).warnings == ()


def test_warnings_are_counted_and_the_first_hundred_kept(jsonl):
    report = check(jsonl(*[PLAIN] * 251))
    assert (report.n_examples, report.n_faults, report.n_warnings) == (251, 0, 250)
    assert [fault.line for fault in report.warnings] == list(range(2, 102))


def test_no_more_examples_are_remembered_than_the_bound():
    doctor = Doctor()
    for line in range(REMEMBERED + 10):
        doctor.look(line, {"text": str(line)}, "text")
    assert len(doctor._first) == REMEMBERED
    doctor.look(0, {"text": "3"}, "text")
    assert doctor.warnings.count == 1


def test_key_order_and_blanks_of_json_do_not_hide_a_duplicate(jsonl):
    one, other = {"prompt": "a", "completion": "b"}, {"completion": "b", "prompt": "a"}
    report = check(jsonl(one, json.dumps(one, indent=None, separators=(",", ":")).encode(), other))
    assert [fault.line for fault in report.warnings] == [2, 3]
