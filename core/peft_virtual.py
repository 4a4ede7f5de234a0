"""Prompts and prefixes as Hugging Face PEFT writes them: what their configs and tensors mean. Knows no file.

A prompt whose virtual tokens do not all stand in front is more than a PROMPT_TUNING config can say. It is written as
TRAINABLE_TOKENS: rows that replace those of some reserved ids in the base's table, so that a text with these ids in the
virtual tokens' places is the template. Where the places are stands in a note of our own beside it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.effects import KVPrefix, SoftPrompt
from core.peft_low_rank import ROOT, number
from core.specs.template import MAX_VIRTUAL_TOKENS, Layout

NOTE = "graft_template"  # of a config in memory: on its way out what the note is to say, on its way in what it says
MAX_SCALE = 1e4
MAX_IDS = 2**16  # of a template's words and virtual tokens
ROWS = re.compile(r"^base_model\.model\..+\.trainable_tokens_delta$")


def soft_prompt(config: dict[str, Any], tensors: dict[str, Tensor]) -> SoftPrompt:
    """What a PROMPT_TUNING or P_TUNING folder does. Raises ValueError."""
    return SoftPrompt(_embeddings(config, tensors))


def templated_prompt(config: dict[str, Any], tensors: dict[str, Tensor]) -> SoftPrompt:
    """What a TRAINABLE_TOKENS folder of ours does. Raises ValueError for one that is not."""
    note = config.get(NOTE)
    if not isinstance(note, dict):
        raise ValueError("this TRAINABLE_TOKENS adapter is not a P-tuned prompt: it has no graft_template.json")  # noqa: TRY004
    if unknown := sorted(name for name in tensors if not ROWS.match(name)):
        raise ValueError(f"tensors that are not understood: {unknown[:8]}")
    # Where the base's head is tied to its table, PEFT saves the same rows for both.
    prompt, *copies = tensors.values() or [torch.empty(0, 0)]
    if not 1 <= len(prompt) <= MAX_VIRTUAL_TOKENS or not all(torch.equal(prompt, copy) for copy in copies):
        raise ValueError(
            f"1 to {MAX_VIRTUAL_TOKENS} rows of trainable_tokens_delta are expected, the same for each layer"
        )
    before, after, reserved = (_ids(note, key) for key in ("before", "after", "token_indices"))
    virtual = [i for i in (*before, *after) if i < 0]
    if virtual != list(range(-1, -1 - len(prompt), -1)):
        raise ValueError(
            f"graft_template.json places virtual tokens {virtual[:8]}, and the file has {len(prompt)} rows"
        )
    if list(reserved) != config.get("token_indices") or not _are_distinct_words(reserved, len(prompt)):
        raise ValueError("token_indices of graft_template.json and adapter_config.json are not one id for each row")
    scale = number(note, "table_scale", 1.0)
    if not 0 < scale < MAX_SCALE:
        raise ValueError(f"graft_template.json: table_scale {scale} is not between 0 and {MAX_SCALE}")
    return SoftPrompt(prompt * scale, Layout(before, after))


def _ids(note: Mapping[str, Any], key: str) -> tuple[int, ...]:
    ids = note.get(key)
    if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(type(i) is int and abs(i) < 2**31 for i in ids):
        raise ValueError(f"graft_template.json: {key} is expected to be a list of at most {MAX_IDS} token ids")
    return tuple(ids)


def _are_distinct_words(ids: tuple[int, ...], count: int) -> bool:
    return len(ids) == len(set(ids)) == count and min(ids) >= 0


def kv_prefix(config: dict[str, Any], tensors: dict[str, Tensor]) -> KVPrefix:
    """What a PREFIX_TUNING folder does. Raises ValueError."""
    flat = _embeddings(config, tensors)  # [P, L * 2 * K * D]
    layers, heads, width = (int(number(config, key, 0)) for key in ("num_layers", "num_attention_heads", "token_dim"))
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


def soft_prompt_tensors(effect: SoftPrompt, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """As a PROMPT_TUNING file holds them, or a TRAINABLE_TOKENS one. Raises ValueError for a place it cannot say."""
    if config["peft_type"] == "TRAINABLE_TOKENS":
        # The base multiplies what it finds in its table; a prompt is what comes of that.
        rows = effect.prompt / config[NOTE]["table_scale"]
        return {f"{ROOT}{config['target_modules'][0]}.trainable_tokens_delta": rows}
    if effect.layout != SoftPrompt(effect.prompt).layout:
        raise ValueError(f"a {config['peft_type']} config has its virtual tokens in front, this template has not")
    return {"prompt_embeddings": effect.prompt}


def template_note(effect: SoftPrompt, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the virtual tokens of a TRAINABLE_TOKENS folder stand: ids before and after a row's input.

    Negative ids are virtual tokens, -1 the first; token_indices has the reserved id of each.
    """
    layout = effect.layout
    return {
        "before": list(layout.before),
        "after": list(layout.after),
        "token_indices": config["token_indices"],
        **config[NOTE],
    }


def kv_prefix_tensors(effect: KVPrefix) -> dict[str, Tensor]:
    """As a PREFIX_TUNING file holds them: [P, L * 2 * K * D], the key of a layer before its value."""
    both = torch.stack([effect.keys, effect.values], 1)  # [L, 2, P, K, D]
    return {"prompt_embeddings": both.permute(2, 0, 1, 3, 4).flatten(1)}
