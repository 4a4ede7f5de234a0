import pytest
from transformers import PreTrainedTokenizerFast

from core.data.amounts import measure
from core.data.faults import Fault, FaultyLineError
from core.data.tokens import encode
from core.specs.dataset import ChatExample

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(make_tokenizer) -> PreTrainedTokenizerFast:
    return make_tokenizer(NO_SYSTEM)


def row_of(conversation, tokenizer):
    return encode(ChatExample.model_validate(conversation), tokenizer, train_on="assistant", max_tokens=10_000)


def test_a_file_is_measured(jsonl, chat, tokenizer):
    long = " ".join(["order"] * 300)
    system = chat(("system", "x"), ("user", "y"), ("assistant", "z"))
    path = jsonl(chat("hi", "yes"), b"", chat("hi", long), system, chat(long, "yes"))
    rows = [row_of(chat(*said), tokenizer) for said in (("hi", "yes"), ("hi", long), (long, "yes"))]

    found = measure(path, tokenizer, 100)

    assert found.lengths.tolist() == [len(row.ids) for row in rows]
    assert found.learned.tolist() == [int(row.learned.sum()) for row in rows]
    assert (found.tokens, found.learned_tokens) == (found.lengths.sum(), found.learned.sum())
    assert (found.n_examples, found.n_too_long) == (4, 2)
    assert found.too_long == ((3, len(rows[1].ids)), (5, len(rows[2].ids)))
    assert found.faults == (Fault(4, "", "chat_template", found.faults[0].message),)
    assert "System role not supported" in found.faults[0].message
    assert measure(path, tokenizer, None).n_too_long == 0
    assert measure(path, tokenizer, None, first=2).lengths.tolist() == found.lengths.tolist()[:2]


def test_a_measure_keeps_the_first_hundred_and_refuses_faulty_files(jsonl, chat, tokenizer):
    found = measure(jsonl(*[chat("hi", "yes")] * 150), tokenizer, 3)
    assert (found.n_too_long, len(found.too_long)) == (150, 100)
    with pytest.raises(FaultyLineError):
        measure(jsonl(b"{}"), tokenizer, 3)
