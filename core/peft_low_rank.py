"""Low-rank adapters as Hugging Face PEFT writes them: what a LORA config and its tensors mean. Knows no file."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from core.effects import LowRank

ROOT = "base_model.model."  # PEFT's name for the model it wraps
LINEAR = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_(?P<side>[AB])\.weight$")
TABLE = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_embedding_(?P<side>[AB])$")
MAGNITUDE = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_(?P<side>magnitude_vector)$")
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
        "use_dora",
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


def low_rank(config: dict[str, Any], tensors: dict[str, Tensor]) -> LowRank:
    """What a LORA folder does. Raises ValueError for one that means more than an effect can say."""
    refuse_variants(config, HARMLESS)
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}, "magnitude_vector": {}}
    tables, unknown = set(), []
    for name, tensor in tensors.items():
        match = LINEAR.match(name) or TABLE.match(name) or MAGNITUDE.match(name)
        if match is None:
            unknown.append(name)
            continue
        sides[match["side"]][match["site"]] = tensor
        if TABLE.match(name):
            tables.add(match["site"])
    if unknown:
        raise ValueError(f"tensors that are not understood: {sorted(unknown)[:8]}")
    a, b, magnitude = sides.values()
    _check_pairs(a, b)
    _check_magnitudes(magnitude, b.keys() if config.get("use_dora") else set(), tables)
    dropout = number(config, "lora_dropout", 0.0)
    if not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout {dropout} is not between 0 and 1")
    scale = {site: _scale(config, site, t.shape[0]) for site, t in a.items()}
    return LowRank(a, b, scale, dropout, tables=frozenset(tables), magnitude=magnitude)


def _check_pairs(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    if a.keys() != b.keys() or not a:
        raise ValueError(f"lora_A or lora_B is missing of {sorted(a.keys() ^ b.keys())[:8] or 'every layer'}")
    for site in a:
        if a[site].shape[0] != b[site].shape[1] or a[site].shape[0] == 0:
            raise ValueError(f"{site}: lora_A {tuple(a[site].shape)} and lora_B {tuple(b[site].shape)} share no rank")


def _check_magnitudes(magnitude: Mapping[str, Tensor], wanted: AbstractSet[str], tables: AbstractSet[str]) -> None:
    if magnitude.keys() != wanted:
        raise ValueError(
            "with use_dora every layer has a lora_magnitude_vector, without it none; "
            f"not so {sorted(magnitude.keys() ^ wanted)[:8]}"
        )
    if magnitude and tables:
        raise ValueError(f"use_dora of embeddings is not supported: {sorted(tables)}")


def refuse_variants(config: Mapping[str, Any], harmless: AbstractSet[str]) -> None:
    """Raise ValueError for a config that says something that is neither harmless nor looked at elsewhere."""
    if config.get("bias", "none") != "none":
        raise ValueError(f"bias {config['bias']!r} changes the base model's biases; only 'none' is supported")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ValueError(f"init_lora_weights {start!r} trains beside a changed base model, which is not supported")
    told = {"bias", "init_lora_weights", "modules_to_save"}
    variants = sorted(key for key, value in config.items() if value and key not in harmless and key not in told)
    if variants:
        raise ValueError(f"the adapter uses {variants}, which is not supported: only plain LoRA and rsLoRA are")


def _scale(config: Mapping[str, Any], site: str, rank: int) -> float:
    """Alpha / rank. PEFT takes the first pattern that matches the end of the layer's name; so do we."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern is a {type(patterns).__name__}; an object is expected")  # noqa: TRY004
    alpha = number(config, "lora_alpha", 8)
    for pattern in patterns:
        if not PATTERN.match(pattern):
            raise ValueError(f"alpha_pattern {pattern!r} is more than a layer's name, which is not supported")
        try:
            is_meant = re.match(rf"(.*\.)?({pattern})$", site)
        except re.error as error:
            raise ValueError(f"alpha_pattern {pattern!r} is not a regular expression: {error}") from error
        if is_meant:
            alpha = number(patterns, pattern, 8)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A config's finite number. Raises ValueError."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}; a finite number is expected")
    return float(value)


def ranks_and_alphas(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The config's fields that say rank and alpha of each site: the commonest by itself, others by their names.

    Whole names, so that no order of the patterns can change what they say.
    """
    rank, alpha = (Counter(values).most_common(1)[0][0] for values in (ranks.values(), alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {site: own for site, own in ranks.items() if own != rank},
        "alpha_pattern": {site: own for site, own in alphas.items() if own != alpha},
    }


def low_rank_tensors(effect: LowRank) -> dict[str, Tensor]:
    """As a LORA file holds them. PEFT knows no rank of 0: a layer without one is left out; nothing is added there."""
    found: dict[str, Tensor] = {}
    for site, a in effect.a.items():
        if not a.shape[0]:
            continue
        names = "lora_embedding_{}" if site in effect.tables else "lora_{}.weight"
        found |= {f"{ROOT}{site}.{names.format('A')}": a, f"{ROOT}{site}.{names.format('B')}": effect.b[site]}
    return found | {f"{ROOT}{site}.lora_magnitude_vector": m for site, m in effect.magnitude.items()}
