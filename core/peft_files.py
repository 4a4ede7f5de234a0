"""An adapter on disk, as Hugging Face PEFT writes and reads it: three kinds of tensors, one for each kind of effect.

Knows no method and no base model: what is read must still be checked against the model that is to wear it
(RoutedModel.resident). Only safetensors is read; a pickle never is.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from core.effects import Effect, Ensemble, KVPrefix, LowRank, SoftPrompt
from core.methods.adalora import AdaLora
from core.peft_adalora import adalora, adalora_tensors
from core.peft_low_rank import low_rank, low_rank_tensors
from core.peft_virtual import (
    NOTE,
    kv_prefix,
    kv_prefix_tensors,
    soft_prompt,
    soft_prompt_tensors,
    template_note,
    templated_prompt,
)

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
TEMPLATE = "graft_template.json"  # of a P-tuned prompt only: where its virtual tokens stand
LIMITS = {CONFIG: 2**20, WEIGHTS: 2**32, TEMPLATE: 2**20}  # bytes that a zip's member may unfold to


class Learned(Protocol):
    """As much of a method as a file needs."""

    def effect(self) -> Effect | Ensemble:
        """What it does."""
        ...

    def peft_config(self) -> dict[str, Any]:
        """adapter_config.json."""
        ...


def write(method: Learned, folder: Path, base_model: str) -> None:
    """Write what a method has learned, in fp32, as a PEFT folder; it is made if it is not there.

    base_model: what stock peft will look the base up by; our own id for it, or its name on the hub.
    """
    if isinstance(method, AdaLora) and method.spec.export_as == "adalora":
        write_adalora(method, folder, base_model)
        return
    config = method.peft_config()
    with torch.no_grad():
        effect = _one(method.effect())
        tensors = _tensors(effect, config)
    folder.mkdir(parents=True, exist_ok=True)
    if NOTE in config and isinstance(effect, SoftPrompt):
        _write_json(folder / TEMPLATE, template_note(effect, config))
        del config[NOTE]
    _save(tensors, config, folder, base_model)


def write_adalora(method: AdaLora, folder: Path, base_model: str) -> None:
    """As write, by AdaLoRA's own name: P, Λ and Q apart, as only PEFT's ADALORA reads them."""
    with torch.no_grad():
        tensors = adalora_tensors(method)
    _save(tensors, method.native_config(), folder, base_model)


def _save(tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, base_model: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: t.detach().float().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "inference_mode": True}
    config = {**config, **common}
    _write_json(folder / CONFIG, config)
    (folder / CARD).write_text(_card(config), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read(folder: Path) -> Effect:
    """The effect alone, in fp32: all that serving needs, whatever method trained it.

    Raises:
        ValueError: the folder is not a PEFT adapter, or one that means more than an effect can say.

    """
    if (folder / "adapter_model.bin").exists() and not (folder / WEIGHTS).exists():
        raise ValueError("the adapter is in adapter_model.bin, a pickle: save it as adapter_model.safetensors first")
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"the adapter has no {' and no '.join(missing)}")
    template = (folder / TEMPLATE).read_bytes() if (folder / TEMPLATE).is_file() else None
    return _effect((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes(), template)


def pack(folder: Path, zip_path: Path) -> None:
    """Zip all files in a folder, however deep, the same bytes for the same files: sorted, stored, without times."""
    with zipfile.ZipFile(zip_path, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            with path.open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
                while block := source.read(2**20):
                    target.write(block)


def read_zip(path: Path, inside: str = "") -> Effect:
    """As read, out of a zip. Only the known members are looked at, in memory: no path of the zip is followed.

    inside: what their names begin with, a folder and its slash.

    Raises:
        ValueError: it is no such zip, or unfolds to more than LIMITS.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            template = _member(archive, TEMPLATE, inside) if inside + TEMPLATE in archive.namelist() else None
            return _effect(_member(archive, CONFIG, inside), _member(archive, WEIGHTS, inside), template)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the adapter is not a readable zip: {error}") from error


def _member(archive: zipfile.ZipFile, name: str, inside: str) -> bytes:
    count = archive.namelist().count(inside + name)
    if count != 1:
        where = inside or "its top level"
        raise ValueError(f"the zip has {count} members named {name} in {where}; it needs one there")
    with archive.open(inside + name) as member:
        content = member.read(LIMITS[name] + 1)
    if len(content) > LIMITS[name]:
        raise ValueError(f"{name} unfolds to more than {LIMITS[name]} bytes")
    return content


def _effect(config_bytes: bytes, weights: bytes, template: bytes | None) -> Effect:
    config = _json(config_bytes, CONFIG)
    kind = config.get("peft_type")
    reader = READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ValueError(f"peft_type {kind!r} cannot be worn; these can: {sorted(READERS)}")
    if config.get("modules_to_save"):
        raise ValueError(f"modules_to_save {config['modules_to_save']} changes whole layers, which is not supported")
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS} is not a safetensors file: {error}") from error
    for name, tensor in tensors.items():
        # Every tensor we know is a matrix, but for the magnitudes of DoRA.
        form, dim = ("vector", 1) if name.endswith("lora_magnitude_vector") else ("matrix", 2)
        if not tensor.is_floating_point() or tensor.dim() != dim:
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; a {form} of floats is expected")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if template is not None and kind == "TRAINABLE_TOKENS":
        config[NOTE] = _json(template, TEMPLATE)
    return reader(config, {name: t.float() for name, t in tensors.items()})


def _json(content: bytes, name: str) -> dict[str, Any]:
    try:
        config = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name} holds a {type(config).__name__}; an object is expected")  # noqa: TRY004 - the file is wrong, not a caller
    return config


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


READERS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Effect]] = {
    "LORA": low_rank,
    "ADALORA": adalora,
    "PROMPT_TUNING": soft_prompt,
    "P_TUNING": soft_prompt,
    "PREFIX_TUNING": kv_prefix,
    "TRAINABLE_TOKENS": templated_prompt,
}


def _one(effect: Effect | Ensemble) -> Effect:
    if isinstance(effect, Ensemble):
        raise ValueError("an ensemble is several adapters, which one PEFT folder cannot hold")  # noqa: TRY004
    return effect


def _tensors(effect: Effect, config: Mapping[str, Any]) -> dict[str, Tensor]:
    match effect:
        case LowRank():
            return low_rank_tensors(effect)
        case SoftPrompt():
            return soft_prompt_tensors(effect, config)
        case KVPrefix():
            return kv_prefix_tensors(effect)


def _card(config: Mapping[str, Any]) -> str:
    name = json.dumps(str(config["base_model_name_or_path"]), ensure_ascii=False)
    return (
        f"---\nbase_model: {name}\nlibrary_name: peft\n---\n\n"
        f"A {config['peft_type']} adapter of {name}, in the format of Hugging Face PEFT:\n"
        "`PeftModel.from_pretrained(base_model, folder)` loads it.\n"
    )
