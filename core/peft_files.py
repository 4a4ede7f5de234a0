"""An adapter on disk, as Hugging Face PEFT writes and reads it: three kinds of tensors, one for each kind of effect.

Knows no method and no base model: what is read must still be checked against the model that is to wear it
(RoutedModel.resident). Only safetensors is read; a pickle never is.
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from core.effects import Effect, KVPrefix, LowRank, SoftPrompt
from core.methods import Method

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
ROOT = "base_model.model."  # PEFT's name for the model it wraps
LIMITS = {CONFIG: 2**20, WEIGHTS: 2**32}  # bytes that a zip's member may unfold to
MATRIX = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_(?P<side>[AB])\.weight$")
# A pattern of a stranger's file becomes a regular expression. Without repetition or choice it cannot run away.
PATTERN = re.compile(r"^[A-Za-z0-9_.\\^]{1,200}$")
# What a LORA config may say without changing what the tensors mean. `target_modules` and its kin are among them: which
# layers are meant is read off the tensors' names.
HARMLESS = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "fan_in_fan_out",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
    }
)
# Ways to start that leave the base model as it was. Others (PiSSA, OLoRA, CorDA, LoftQ) train beside a changed one.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")


def write(method: Method, folder: Path, base_model: str) -> None:
    """Write what a method has learned, in fp32, as a PEFT folder; it is made if it is not there.

    base_model: what stock peft will look the base up by; our own id for it, or its name on the hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        tensors = {name: t.detach().float().cpu().contiguous().clone() for name, t in _tensors(method.effect()).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "inference_mode": True}
    config = method.peft_config() | common
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(config), encoding="utf-8")


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
    return _effect((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes())


def pack(folder: Path, zip_path: Path) -> None:
    """Zip a folder's files, the same bytes for the same files: sorted, stored, without times."""
    with zipfile.ZipFile(zip_path, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            member = zipfile.ZipInfo(path.name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system, member.external_attr = 3, 0o644 << 16
            with path.open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
                while block := source.read(2**20):
                    target.write(block)


def read_zip(path: Path) -> Effect:
    """As read, out of a zip. Only the two known members are looked at, in memory: no path of the zip is followed.

    Raises:
        ValueError: it is no such zip, or unfolds to more than LIMITS.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _effect(_member(archive, CONFIG), _member(archive, WEIGHTS))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the adapter is not a readable zip: {error}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    count = archive.namelist().count(name)
    if count != 1:
        raise ValueError(f"the zip has {count} members named {name}; it needs one, at its top level")
    with archive.open(name) as member:
        content = member.read(LIMITS[name] + 1)
    if len(content) > LIMITS[name]:
        raise ValueError(f"{name} unfolds to more than {LIMITS[name]} bytes")
    return content


def _effect(config_bytes: bytes, weights: bytes) -> Effect:
    config = _config(config_bytes)
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
        if not tensor.is_floating_point() or tensor.dim() != 2:  # noqa: PLR2004 - every tensor we know is a matrix
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; a matrix of floats is expected")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return reader(config, {name: t.float() for name, t in tensors.items()})


def _config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds a {type(config).__name__}; an object is expected")  # noqa: TRY004 - the file is wrong, not a caller
    return config


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _low_rank(config: dict[str, Any], tensors: dict[str, Tensor]) -> LowRank:
    _refuse_variants(config)
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    unknown = []
    for name, tensor in tensors.items():
        match = MATRIX.match(name)
        if match is None:
            unknown.append(name)
        else:
            sides[match["side"]][match["site"]] = tensor
    if unknown:
        raise ValueError(f"tensors that are not understood: {sorted(unknown)[:8]}")
    a, b = sides["A"], sides["B"]
    if a.keys() != b.keys() or not a:
        raise ValueError(f"lora_A or lora_B is missing of {sorted(a.keys() ^ b.keys())[:8] or 'every layer'}")
    for site in a:
        if a[site].shape[0] != b[site].shape[1] or a[site].shape[0] == 0:
            raise ValueError(f"{site}: lora_A {tuple(a[site].shape)} and lora_B {tuple(b[site].shape)} share no rank")
    dropout = _number(config, "lora_dropout", 0.0)
    if not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout {dropout} is not between 0 and 1")
    return LowRank(a, b, {site: _scale(config, site, t.shape[0]) for site, t in a.items()}, dropout)


def _refuse_variants(config: Mapping[str, Any]) -> None:
    if config.get("bias", "none") != "none":
        raise ValueError(f"bias {config['bias']!r} changes the base model's biases; only 'none' is supported")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ValueError(f"init_lora_weights {start!r} trains beside a changed base model, which is not supported")
    told = {"bias", "init_lora_weights", "modules_to_save"}
    variants = sorted(key for key, value in config.items() if value and key not in HARMLESS and key not in told)
    if variants:
        raise ValueError(f"the adapter uses {variants}, which is not supported: only plain LoRA and rsLoRA are")


def _scale(config: Mapping[str, Any], site: str, rank: int) -> float:
    """Alpha / rank. PEFT takes the first pattern that matches the end of the layer's name; so do we."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern is a {type(patterns).__name__}; an object is expected")  # noqa: TRY004
    alpha = _number(config, "lora_alpha", 8)
    for pattern in patterns:
        if not PATTERN.match(pattern):
            raise ValueError(f"alpha_pattern {pattern!r} is more than a layer's name, which is not supported")
        try:
            is_meant = re.match(rf"(.*\.)?({pattern})$", site)
        except re.error as error:
            raise ValueError(f"alpha_pattern {pattern!r} is not a regular expression: {error}") from error
        if is_meant:
            alpha = _number(patterns, pattern, 8)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}; a finite number is expected")
    return float(value)


def _soft_prompt(config: dict[str, Any], tensors: dict[str, Tensor]) -> SoftPrompt:
    return SoftPrompt(_embeddings(config, tensors))


def _kv_prefix(config: dict[str, Any], tensors: dict[str, Tensor]) -> KVPrefix:
    flat = _embeddings(config, tensors)  # [P, L * 2 * K * D]
    layers, heads, width = (int(_number(config, key, 0)) for key in ("num_layers", "num_attention_heads", "token_dim"))
    if min(layers, heads, width) < 1 or width % heads or flat.shape[1] != 2 * layers * width:
        raise ValueError(
            f"the prefix is {flat.shape[1]} wide; num_layers {layers}, num_attention_heads {heads} and "
            f"token_dim {width} ask for {2 * layers * width}"
        )
    keys, values = flat.view(len(flat), layers, 2, heads, width // heads).permute(2, 1, 0, 3, 4)  # [L, P, K, D] each
    return KVPrefix(keys.contiguous(), values.contiguous())


def _embeddings(config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    if tensors.keys() != {"prompt_embeddings"}:
        raise ValueError(f"a {config['peft_type']} file holds prompt_embeddings alone, this one {sorted(tensors)[:8]}")
    if config.get("num_transformer_submodules") not in (None, 1):
        raise ValueError("num_transformer_submodules is not 1: prompts of encoder-decoder models are not supported")
    return tensors["prompt_embeddings"]


READERS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Effect]] = {
    "LORA": _low_rank,
    "PROMPT_TUNING": _soft_prompt,
    "P_TUNING": _soft_prompt,
    "PREFIX_TUNING": _kv_prefix,
}


def _tensors(effect: Effect) -> dict[str, Tensor]:
    match effect:
        case LowRank(a, b):
            # PEFT knows no rank of 0: a layer without one is left out, and nothing is added there.
            kept = [site for site in a if a[site].shape[0]]
            downs = {f"{ROOT}{site}.lora_A.weight": a[site] for site in kept}
            return downs | {f"{ROOT}{site}.lora_B.weight": b[site] for site in kept}
        case SoftPrompt(prompt):
            return {"prompt_embeddings": prompt}
        case KVPrefix(keys, values):
            return {"prompt_embeddings": torch.stack([keys, values], 1).permute(2, 0, 1, 3, 4).flatten(1)}


def _card(config: Mapping[str, Any]) -> str:
    name = json.dumps(str(config["base_model_name_or_path"]), ensure_ascii=False)
    return (
        f"---\nbase_model: {name}\nlibrary_name: peft\n---\n\n"
        f"A {config['peft_type']} adapter of {name}, in the format of Hugging Face PEFT:\n"
        "`PeftModel.from_pretrained(base_model, folder)` loads it.\n"
    )
