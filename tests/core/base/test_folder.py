import hashlib
import json
import os

import pytest

from core.base.catalogue import UnusableBaseModel
from core.base.folder import ARCHITECTURES, refuse_unsafe, weights_of, weights_sha256


@pytest.fixture
def files(tmp_path):
    """A folder that looks like a model's."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": {"rope_theta": 1e4}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text("{}")
    return path


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_ordinary_folder_passes(files):
    refuse_unsafe(files)
    change(files / "config.json", quantization_config=None, _attn_implementation_autoset=True)
    refuse_unsafe(files)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "field",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
        {"_attn_implementation_internal": "evil/kernels"},
        {"attn_implementation": "evil/kernels"},
        {"quantization_config": {"quant_method": "custom"}},
        {"text_config": {"vision": [{"auto_map": {}}]}},
    ],
)
def test_what_could_run_a_strangers_code_is_refused(files, name, field):
    (files / name).touch()
    (files / name).write_text((files / name).read_text() or "{}")
    change(files / name, **field)
    with pytest.raises(UnusableBaseModel, match=name):
        refuse_unsafe(files)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "pkl", "ckpt"])
def test_pickled_weights_alone_are_refused(files, suffix):
    (files / "model.safetensors").rename(files / f"model.{suffix}")
    with pytest.raises(UnusableBaseModel, match=rf"only model\.{suffix}, which can run code when opened"):
        refuse_unsafe(files)


def test_a_folder_without_weights_is_refused(files):
    (files / "model.safetensors").unlink()
    with pytest.raises(UnusableBaseModel, match="no weights"):
        weights_of(files)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "evil"},
        {"model_type": None},
        {"model_type": ["llama"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["LlamaForCausalLM", "Evil"]},
        {"architectures": "LlamaForCausalLM"},
    ],
)
def test_only_known_architectures_are_opened(files, fields):
    change(files / "config.json", **fields)
    with pytest.raises(UnusableBaseModel, match="is not one of GemmaForCausalLM"):
        refuse_unsafe(files)


def test_the_architectures_named_are_the_librarys_own():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN  # noqa: PLC0415

    assert {kind: KNOWN[kind] for kind in ARCHITECTURES} == ARCHITECTURES


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(files, content):
    (files / "config.json").write_bytes(content)
    with pytest.raises(UnusableBaseModel, match=r"config\.json is not"):
        refuse_unsafe(files)


def test_a_folder_without_a_config_is_refused(files):
    (files / "config.json").unlink()
    with pytest.raises(UnusableBaseModel, match=r"has no config\.json"):
        refuse_unsafe(files)


def test_a_sum_is_noted_and_taken_anew_when_the_file_changes(files, tmp_path):
    weights, notes = weights_of(files), tmp_path / "notes"
    first = weights_sha256(weights, notes)
    assert first == hashlib.sha256(b"weights").hexdigest()

    [note] = notes.iterdir()
    note.write_text("noted")
    assert weights_sha256(weights, notes) == "noted"

    weights[0].write_bytes(b"weightS")
    os.utime(weights[0], ns=(1, 1))
    assert weights_sha256(weights, notes) == hashlib.sha256(b"weightS").hexdigest()


def test_the_sum_of_several_files_is_of_all_in_order(files, tmp_path):
    one = weights_sha256(weights_of(files), tmp_path / "notes")
    (files / "model-2.safetensors").write_bytes(b"more")
    both = weights_sha256(weights_of(files), tmp_path / "notes")
    more = hashlib.sha256(b"more").hexdigest()
    assert both == hashlib.sha256((more + one).encode()).hexdigest()
