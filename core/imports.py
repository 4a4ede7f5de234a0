"""An adapter that others made, from a stranger's file to a PEFT folder as we write it ourselves.

Tensors are trusted first, then the config: which layers, which ranks and how many virtual tokens is read off the
tensors, and the config is made to agree. Whether it fits the base model is for the model to say; whether its config
means no more than an effect can, for peft_files, which reads what is written here.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from core import foreign_zip, safetensors_header
from core.data.json_lines import MalformedLineError, name, parse, see
from core.peft_files import CONFIG, WEIGHTS
from core.peft_loralib import lora_of
from core.specs.inspection import MergedLinearSpec
from core.specs.template import MAX_VIRTUAL_TOKENS

TEMPLATE = "graft_template.json"  # our own note beside TRAINABLE_TOKENS: where a row's virtual tokens stand
MAX_CONFIG_BYTES = 256 << 10
MAX_WEIGHTS_BYTES = 2 << 30
# What a config says of the machine that wrote it: paths, modules to import, revisions of another base model's files.
_ELSEWHERE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "runtime_config",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "prompt_tuning_init_state_dict_path",
    }
)
_RESOLVED = ("exclude_modules", "layers_to_transform", "layers_pattern")  # what target_modules once were chosen by
_SITE = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<side>[A-Z])(\.weight)?")
MAX_RANK = 1024


@dataclass(frozen=True, eq=False)
class Foreign:
    """What was found, its config made to agree with its tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    warnings: tuple[str, ...] = ()
    claimed_base: str | None = None  # the base model's name in the config
    template: dict[str, Any] | None = None  # what TEMPLATE says

    @property
    def parameters(self) -> int:
        """Numbers that were trained, zeros that only fill a matrix included."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def read_peft(path: Path, base_model: str) -> Foreign:
    """A PEFT folder as a zip. Raises ValueError that says what is wrong and what to do."""
    with path.open("rb") as file:
        start = file.read(9)
    if _is_pickle(start):
        raise ValueError(f"the file is a pickle, which runs code when it is read: {foreign_zip.CONVERT}")
    if not start.startswith(foreign_zip.MAGIC):
        raise ValueError(f"the file is not a zip: zip {CONFIG} and {WEIGHTS} together")
    limits = {CONFIG: MAX_CONFIG_BYTES, WEIGHTS: MAX_WEIGHTS_BYTES}
    found = foreign_zip.read(path, limits, {TEMPLATE: MAX_CONFIG_BYTES})
    config, tensors = _json(CONFIG, found[CONFIG]), _tensors(found[WEIGHTS])
    _refuse_giants(tensors)
    claimed = config.get("base_model_name_or_path")
    claimed = name(claimed) if isinstance(claimed, str) and claimed else None
    return Foreign(
        config=_agreeing(config, tensors),
        tensors=tensors,
        warnings=tuple(_warnings(config, tensors, claimed, base_model)),
        claimed_base=claimed,
        template=_json(TEMPLATE, found[TEMPLATE]) if TEMPLATE in found else None,
    )


def read_loralib(path: Path, spec: MergedLinearSpec, sites: Collection[str]) -> Foreign:
    """A safetensors file of microsoft/LoRA's MergedLinear layers. Raises ValueError, as read_peft."""
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ValueError(f"the file has {size} bytes; at most {MAX_WEIGHTS_BYTES} are read")
    content = path.read_bytes()
    if _is_pickle(content[:9]) or content.startswith(foreign_zip.MAGIC):
        raise ValueError(
            f"the file is of torch.save, a pickle, which runs code when it is read: {foreign_zip.CONVERT}; "
            "microsoft/LoRA keeps them under 'model_state_dict'"
        )
    config, tensors = lora_of(_tensors(content), spec, sites)
    return Foreign(config, tensors)


def write(foreign: Foreign, folder: Path, base_model: str) -> None:
    """The config and the tensors, in the type they came in, as a PEFT folder; it is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in foreign.tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = foreign.config | {"base_model_name_or_path": base_model, "inference_mode": True}
    # Only the outermost keys are sorted: of the patterns within, the first that matches counts.
    _write_json(folder / CONFIG, dict(sorted(config.items())))
    if foreign.template is not None:
        _write_json(folder / TEMPLATE, foreign.template)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_pickle(start: bytes) -> bool:
    """By its first 9 bytes. A safetensors file may begin with the same byte, but its header's brace comes ninth."""
    return start[:1] == b"\x80" and start[8:9] != b"{"


def _json(file: str, content: bytes) -> dict[str, Any]:
    try:
        value = parse(content)
        see(value)
    except MalformedLineError as error:
        raise ValueError(f"{file} is not JSON as it should be: {error.field} {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}; an object is expected")  # noqa: TRY004 - the file is wrong, not a caller
    return value


def _tensors(content: bytes) -> dict[str, Tensor]:
    try:
        safetensors_header.check(content)
        return load(content)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{WEIGHTS} is not a safetensors file as it should be: {error}") from error


def _refuse_giants(tensors: Mapping[str, Tensor]) -> None:
    """What would fit the base model's shapes, and yet no row's memory."""
    for site, rank in _ranks(tensors).items():
        if rank > MAX_RANK:
            raise ValueError(f"{site} has rank {rank}; at most {MAX_RANK} is served")
    prompt = tensors.get("prompt_embeddings")
    if prompt is not None and prompt.dim() and len(prompt) > MAX_VIRTUAL_TOKENS:
        raise ValueError(f"the adapter has {len(prompt)} virtual tokens; at most {MAX_VIRTUAL_TOKENS} are served")


def _agreeing(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config as the tensors have it, without what is of another machine and what says nothing."""
    kept = {key: value for key, value in config.items() if value is not None and key not in _ELSEWHERE}
    match kept.get("peft_type"):
        case "LORA" | "ADALORA":
            kept = {key: value for key, value in kept.items() if key not in _RESOLVED}
            kept["target_modules"] = sorted(_ranks(tensors))
        case "PROMPT_TUNING":
            kept["prompt_tuning_init"] = "RANDOM"
    if kept.get("peft_type") == "LORA":
        kept |= _rank_fields(_ranks(tensors))
    if "prompt_embeddings" in tensors:
        kept["num_virtual_tokens"] = len(tensors["prompt_embeddings"])
    kept["task_type"] = "CAUSAL_LM"
    return kept


def _ranks(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Each layer's rank: the rows of its A."""
    matches = ((_SITE.fullmatch(key), tensor) for key, tensor in tensors.items())
    return {match["site"]: len(tensor) for match, tensor in matches if match and match["side"] == "A" and tensor.dim()}


def _rank_fields(ranks: Mapping[str, int]) -> dict[str, Any]:
    if not ranks:
        return {}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    return {"r": usual, "rank_pattern": {site: rank for site, rank in sorted(ranks.items()) if rank != usual}}


def _warnings(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], claimed: str | None, base_model: str
) -> list[str]:
    said = []
    if claimed and claimed.rstrip("/").rpartition("/")[2].lower() != base_model.lower():
        said.append(f"the adapter's config names the base model {claimed}; it is served on {base_model}")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        said.append(f"the adapter's task_type is {name(str(config['task_type']))}; it is served as CAUSAL_LM")
    if config.get("peft_type") == "LORA" and config.get("lora_alpha") is None:
        said.append("the adapter's config has no lora_alpha; PEFT's default of 8 is used")
    prompt, told = tensors.get("prompt_embeddings"), config.get("num_virtual_tokens")
    if prompt is not None and told not in (None, len(prompt)):
        said.append(f"the adapter's config says {name(str(told))} virtual tokens, its tensors {len(prompt)}")
    return said
