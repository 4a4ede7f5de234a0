"""A job's files to rows: in its method's template, and no longer than the context has room for beside its prefix."""

import json
from functools import partial

import pytest
import torch
from tiny_job import PLAIN, make_tiny_base, write_pairs, write_rows

from core import adapter_files, peft_files
from core.base.load import open_tokenizer
from core.effects import Ensemble
from core.specs.method import LoraSpec, PrefixTuningSpec, PromptTuningSpec, PTuningSpec
from core.specs.training import DPO, TrainSpec
from worker.reading import UnusableFileError, corpus_of, start_of


@pytest.fixture
def read(tmp_path):
    """read(method, context=512): the corpus of three rows."""
    tokenizer = open_tokenizer(make_tiny_base(tmp_path / "base"), cache_dir=tmp_path / "cache")
    path = write_rows(tmp_path / "training.jsonl", 3)

    def corpus(method, context=512):
        spec = TrainSpec(base_model="tiny", method=method, **PLAIN)
        return corpus_of(path, tokenizer, spec, context=context, param="training_file")

    return corpus


def longest(corpus):
    return max(len(row.ids) for row in corpus)


def test_every_row_wears_its_methods_template(read):
    plain, front = read(LoraSpec()), read(PromptTuningSpec(num_virtual_tokens=5))
    parted = read(PTuningSpec(template="{v:1}ab{input}{v:2}{target}"))
    assert longest(front) == longest(plain) + 5
    assert longest(parted) == longest(plain) + 5
    for row, bare in zip(parted, plain, strict=True):
        assert [i for i in row.ids.tolist() if i < 0] == [-1, -2, -3]
        assert int(row.learned.sum()) == int(bare.learned.sum())
        assert row.ids[row.learned].tolist() == bare.ids[bare.learned].tolist()


@pytest.mark.parametrize(
    ("method", "takes"),
    [(LoraSpec(), 0), (PromptTuningSpec(num_virtual_tokens=6), 6), (PrefixTuningSpec(num_virtual_tokens=6), 6)],
)
def test_virtual_tokens_and_prefixes_take_their_room_of_the_context(read, method, takes):
    needed = longest(read(LoraSpec())) + takes
    read(method, context=needed)
    with pytest.raises(UnusableFileError, match="tokens; at most"):
        read(method, context=needed - 1)


@pytest.mark.parametrize("is_of_pairs", [False, True])
def test_a_file_says_of_every_line_that_it_is_being_read_and_can_be_stopped_at_each(tmp_path, is_of_pairs):
    tokenizer = open_tokenizer(make_tiny_base(tmp_path / "base"), cache_dir=tmp_path / "cache")
    path = (write_pairs if is_of_pairs else write_rows)(tmp_path / "training.jsonl", 3)
    spec = TrainSpec(base_model="tiny", method=LoraSpec(), **PLAIN, dpo=DPO() if is_of_pairs else None)
    how, heard = {"context": 512, "param": "training_file"}, []
    corpus_of(path, tokenizer, spec, **how, heed=lambda: heard.append(1))
    # Checked, measured (a pair is two rows), encoded.
    assert len(heard) == (3 + 6 + 3 if is_of_pairs else 9)

    def enough(left):
        left.pop()  # raises IndexError where none is left

    for stopped in range(len(heard)):
        with pytest.raises(IndexError):
            corpus_of(path, tokenizer, spec, **how, heed=partial(enough, [1] * stopped))


def test_a_prompt_starts_from_an_adapters_zip_and_from_nothing_else(tmp_path, new_facts, new_effects):
    def zipped(effect, config):
        folder = tmp_path / config["peft_type"]
        adapter_files.write(Learned(effect, config), folder, "tiny")
        peft_files.pack(folder, folder.with_suffix(".zip"))
        return folder.with_suffix(".zip")

    effects = new_effects(new_facts())
    prompt = zipped(effects["prompt"], {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4})
    assert torch.equal(start_of(prompt)["start"].prompt, effects["prompt"].prompt)
    assert start_of(None) == {}
    both = zipped(Ensemble((effects["prompt"],) * 2), {"peft_type": "P_TUNING", "num_virtual_tokens": 4})
    for wrong in (zipped(effects["rank 4"], {"peft_type": "LORA", "r": 4, "lora_alpha": 8}), both):
        with pytest.raises(ValueError, match="a prompt is expected"):
            start_of(wrong)


class Learned:
    """A method that has learned this."""

    def __init__(self, effect, config):
        self._effect, self._config = effect, config

    def effect(self):
        return self._effect

    def peft_config(self):
        return self._config


def test_preference_pairs_are_refused_and_classes_are_kept(tmp_path):
    tokenizer = open_tokenizer(make_tiny_base(tmp_path / "base"), cache_dir=tmp_path / "cache")
    spec = TrainSpec(base_model="tiny", method=LoraSpec(), **PLAIN)

    def corpus(*rows):
        path = tmp_path / "file"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return corpus_of(path, tokenizer, spec, context=512, param="validation_file")

    said = [{"role": "assistant", "content": word} for word in ("yes", "no")]
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(UnusableFileError, match="only dpo learns") as caught:
        corpus({"input": asked, "preferred_output": said[:1], "non_preferred_output": said[1:]})
    assert (caught.value.param, caught.value.details[0]["code"]) == ("validation_file", "unsupported_format")
    kept = corpus({"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    assert (kept.classes, kept.class_of.tolist(), kept.lines.tolist()) == (("x", "y"), [0, 1], [1, 2])
