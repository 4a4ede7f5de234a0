"""The card of an adapter's zip: its code loads the adapter with stock PEFT and answers, whatever the peft_type."""

import re

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_job import make_tiny_base
from transformers import AutoModelForCausalLM

from worker.card import card_of_import, card_of_run

FACTS = {
    "base_model": "tiny",
    "base_revision_sha256": "1" * 64,
    "chat_template_sha256": "2" * 64,
    "computed_in": "fp32",
    "base_precision": "bf16",
    "parameters": 12_345,
    "peft_type": "LORA",
    "warnings": ["it names another base model | x"],
    "imported": {"format": "peft", "sha256": "3" * 64},
}
SPEC = {"method": {"type": "p_tuning", "template": "{v:3} {input} {v:2}{target}"}, "n_epochs": 2, "batch_size": 3}
RUN = FACTS | {"spec": SPEC, "step": 8, "metrics": {"train_loss": 1.5}}
CONFIGS = {
    "LORA": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def code_of(card):
    return re.search(r"```python\n(.+?)\n```", card, re.DOTALL)[1]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_code_of_the_card_runs_as_it_stands(kind, tmp_path, monkeypatch, capsys):
    make_tiny_base(tmp_path / "tiny")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    get_peft_model(base, CONFIGS[kind]).save_pretrained(tmp_path / "adapter")
    code = code_of(card_of_import(FACTS | {"peft_type": kind}, {}))
    code = code.replace('BASE = "tiny"', f"BASE = {str(tmp_path / 'tiny')!r}").replace(
        "max_new_tokens=64", "max_new_tokens=3"
    )
    monkeypatch.chdir(tmp_path / "adapter")
    exec(compile(code, "card", "exec"), {})
    assert "Hello" in capsys.readouterr().out


@pytest.mark.parametrize("make", [card_of_run, card_of_import])
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_the_card_says_what_it_is_and_how_graft_serves_it(make, precision):
    card = make(RUN | {"base_precision": precision}, {})
    assert card.startswith('---\nbase_model: "tiny"\n')
    assert "12,345" in card
    assert f"-F model=tiny -F base_precision={precision}" in card
    assert ("bnb_4bit_use_double_quant=True" in card) == (precision == "nf4")
    compile(code_of(card), "card", "exec")


def test_each_kind_has_its_note():
    assert "`token_indices`" in card_of_run(RUN | {"peft_type": "TRAINABLE_TOKENS"}, {})
    assert "`{v:3} {input} {v:2}{target}`" in card_of_run(RUN | {"peft_type": "TRAINABLE_TOKENS"}, {})
    assert "padding" in card_of_import(FACTS | {"peft_type": "PROMPT_TUNING"}, {})
    assert "DoRA" in card_of_import(FACTS, {"use_dora": True})
    assert "another base model \\| x" in card_of_import(FACTS, {})
