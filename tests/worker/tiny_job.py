"""A job that trains in a second: a random Llama with a byte-level tokeniser in a folder, a data set, an assignment."""

import hashlib
import json
import threading
import zipfile

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.settings import Settings
from core.specs.assignment import (
    DRAINED,
    FINISHED,
    Assignment,
    BaseModelEntry,
    CheckpointReport,
    Said,
    StepReport,
    ValidationReport,
)
from core.specs.method import LoraSpec
from core.specs.training import TrainSpec
from worker.company import Company

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = {
    "n_epochs": 2,
    "batch_size": 3,
    "learning_rate": 0.02,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_seq_length": 256,
    "tokens_per_batch": 256,
    "train_on": "assistant",
    "eval_steps": 3,
    "n_checkpoints": 2,
    "seed": 7,
}
STEPS = 8  # of PLAIN on ROWS rows
ROWS = 12


def make_tiny_base(folder):
    """Saves the model and its tokeniser there; returns its catalogue entry."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **special)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return BaseModelEntry(id="tiny", source=str(folder))


def write_rows(path, count, first=0):
    """Chat rows of which no two are alike."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"{n * n} " * (n % 4 + 1)},
            ]
        }
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(path, count, first=0):
    """Preference rows of which no two are alike: of two numbers the square is preferred."""
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"{n}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"{n * n} " * (n % 3 + 1)}],
            "non_preferred_output": [{"role": "assistant", "content": f"no, {n}"}],
        }
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_assignment(folder, base, *, lease_epoch=1, method=None, rows=ROWS, **changes):
    """A job in folder. Its work_dir is folder/work; call it again with a higher lease_epoch for the next attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.1} | (method or {})
    return Assignment(
        job_id="ftjob-test",
        lease_epoch=lease_epoch,
        spec=TrainSpec(base_model="tiny", method=LoraSpec(**chosen), **(PLAIN | changes)),
        base=base,
        training_file=write_rows(folder / "training.jsonl", rows),
        validation_file=write_rows(folder / "validation.jsonl", 5, first=100),
        work_dir=folder / "work",
        cache_dir=folder.parent / "cache",
    )


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def numbers(reports):
    """What was said of each step and validation, but for times and memory; repeats must agree."""
    said = {}
    for report in reports:
        match report:
            case StepReport():
                content = report.model_dump(exclude={"tokens_per_s", "memory_bytes"})
            case ValidationReport():
                content = report.model_dump()
            case CheckpointReport(adapter=adapter) if adapter is not None:
                content = {"kind": "adapter", "step": report.step, "name": adapter.name, "metrics": report.metrics}
            case _:
                continue
        key = (content["kind"], content["step"])
        assert said.setdefault(key, content) == content
    return said


class Killed(BaseException):
    """As kill -9: nothing of ours gets to run any more."""


def attempt(assignment, *, kill_at=None, drain_at=None, checkpoint_steps=2, checkpoint_s=300):
    """(exit code or None if killed, reports). kill_at: before the report of that number; drain_at: after so many."""
    reports, drain = [], threading.Event()

    def tell(told):
        if not isinstance(told, Said):
            return
        if len(reports) == kill_at:
            raise Killed
        reports.append(told.report)
        if len(reports) == drain_at:
            drain.set()

    with pytest.MonkeyPatch.context() as environment:
        often = {"CHECKPOINT_STEPS": str(checkpoint_steps), "CHECKPOINT_S": str(checkpoint_s)}
        for name, value in (often | {"THREADS": "1", "DEVICE": "cpu", "PRECISION": "fp32"}).items():
            environment.setenv(f"GRAFT_{name}", value)
        try:
            return Company(Settings(), tell, drain).go(assignment), reports
        except Killed:
            return None, reports


def attempts(folder, base, stops, **changes):
    """Attempts with these stops, then one to the end. stops: {"kill_at": n} or {"drain_at": n}. All their reports."""
    said = []
    for lease_epoch, stop in enumerate([*stops, {}], start=1):
        code, reports = attempt(make_assignment(folder, base, lease_epoch=lease_epoch, **changes), **stop)
        said += reports
        if code == FINISHED:
            return said
        assert code == (DRAINED if "drain_at" in stop else None)
    raise AssertionError("the last attempt did not finish")


def of_kind(reports, kind):
    """Those of one class."""
    return [report for report in reports if isinstance(report, kind)]
