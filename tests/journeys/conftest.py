"""A base model small enough to train while one waits, and services on it."""

import json

import pytest
import torch
from one_machine import IMPATIENT, Service
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A folder with a random Llama of two layers, its byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("tiny-base")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **specials)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_service(tmp_path_factory, tiny_base):
    """Services on the tiny base; whatever is left of them is ended with the module."""
    made = []

    def make(**settings):
        base = {"GRAFT_BASE_MODELS": json.dumps({"tiny": str(tiny_base)}), "GRAFT_DEFAULT_BASE_MODEL": "tiny"}
        made.append(Service(tmp_path_factory.mktemp("journey") / "data", **IMPATIENT | base | settings))
        return made[-1]

    yield make
    for service in made:
        service.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Show what the services said when a journey fails."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Service):
                report.sections.append(("the service", value.story()))
    return report
