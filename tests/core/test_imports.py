"""Bytes of a stranger become an adapter or words, and nothing else."""

import io
import json
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from core import imports
from core.imports import TEMPLATE, read_loralib, read_peft, write
from core.peft_files import CONFIG, WEIGHTS
from core.specs.inspection import MergedLinearSpec

SITE = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {f"{SITE}.lora_A.weight": torch.ones(2, 4), f"{SITE}.lora_B.weight": torch.ones(4, 2)}
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base"}


def zipped(path, config=LORA, tensors=TENSORS, **others):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CONFIG, config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr(WEIGHTS, tensors if isinstance(tensors, bytes) else save(tensors))
        for name, content in others.items():
            archive.writestr(name, content)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(
        st.sampled_from(["peft_type", "r", "lora_alpha", "task_type", "num_virtual_tokens", "base_model_name_or_path"]),
        st.one_of(
            st.sampled_from(["LORA", "PROMPT_TUNING", "ADALORA"]),
            st.none(),
            st.integers(-9, 9),
            st.text(max_size=5),
            st.lists(st.booleans(), max_size=2),
        ),
    )
)
def test_any_config_is_read_or_refused_with_words(config, tmp_path):
    try:
        foreign = read_peft(zipped(tmp_path / "x.zip", config), "base")
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either end is right
    else:
        write(foreign, tmp_path / "folder", "base")
        assert json.loads((tmp_path / "folder" / CONFIG).read_text())["base_model_name_or_path"] == "base"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=64), st.builds(lambda b: b"PK\x03\x04" + b, st.binary(max_size=64))))
def test_any_bytes_are_refused_with_words(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_peft(tmp_path / "x", "base")
    with pytest.raises(ValueError, match=r"\w"):
        read_loralib(tmp_path / "x", MergedLinearSpec(r=1, alpha=1), [])


def test_what_is_of_another_machine_is_left_behind(tmp_path):
    config = LORA | {
        "auto_mapping": {"base_model_class": "X", "parent_library": "os"},
        "revision": "main",
        "base_model_name_or_path": "/etc/passwd",
        "layers_to_transform": [0],
        "layers_pattern": "layers",
        "corda_config": None,
    }
    foreign = read_peft(zipped(tmp_path / "x.zip", config), "base")
    assert set(foreign.config) == {"peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "task_type"}
    assert foreign.claimed_base == "/etc/passwd"


def test_a_layers_own_rank_is_read_off_its_tensor(tmp_path):
    other = SITE.replace("q_proj", "v_proj")
    tensors = TENSORS | {f"{other}.lora_A.weight": torch.ones(3, 4), f"{other}.lora_B.weight": torch.ones(4, 3)}
    more = {name.replace("q_proj", "k_proj"): t.clone() for name, t in TENSORS.items()}
    foreign = read_peft(zipped(tmp_path / "x.zip", LORA | {"rank_pattern": {"x": 9}}, tensors | more), "base")
    assert (foreign.config["r"], foreign.config["rank_pattern"]) == (2, {"model.layers.0.self_attn.v_proj": 3})


def test_the_note_of_a_template_stays_with_its_adapter(tmp_path):
    note = {"before": [5, -1], "after": [7], "token_indices": [90]}
    foreign = read_peft(zipped(tmp_path / "x.zip", **{TEMPLATE: json.dumps(note)}), "base")
    write(foreign, tmp_path / "folder", "base")
    assert json.loads((tmp_path / "folder" / TEMPLATE).read_text()) == note
    with pytest.raises(ValueError, match=r"graft_template\.json is not JSON"):
        read_peft(zipped(tmp_path / "y.zip", **{TEMPLATE: "{"}), "base")


def test_more_virtual_tokens_than_a_row_may_have_are_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", {"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": torch.ones(513, 2)})
    with pytest.raises(ValueError, match="513 virtual tokens; at most 512"):
        read_peft(path, "base")


def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_none(tmp_path):
    tensors = {"h.0.attn.c_attn.lora_A": torch.ones(2, 6), "h.0.attn.c_attn.lora_B": torch.ones(12, 1)}
    for padding in range(0, 256, 8):
        content = save(tensors, metadata={"p": "x" * padding})
        if content[0] == 0x80:
            break
    assert content[0] == 0x80
    (tmp_path / "x").write_bytes(content)
    foreign = read_loralib(tmp_path / "x", MergedLinearSpec(r=1, alpha=2), ["transformer.h.0.attn.c_attn"])
    assert foreign.config["lora_alpha"] == 4


def test_without_the_header_check_a_strange_type_would_pass(tmp_path, monkeypatch):
    tensors = TENSORS | {f"{SITE}.lora_A.weight": torch.ones(2, 4, dtype=torch.float64)}
    with pytest.raises(ValueError, match="dtype F64"):
        read_peft(zipped(tmp_path / "x.zip", tensors=tensors), "base")
    monkeypatch.setattr(imports.safetensors_header, "check", lambda _: [])
    assert read_peft(zipped(tmp_path / "x.zip", tensors=tensors), "base").parameters == 16


def test_a_pickle_that_calls_itself_an_adapter_is_never_read(tmp_path):
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    (tmp_path / "x").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="weights_only=True"):
        read_peft(tmp_path / "x", "base")
