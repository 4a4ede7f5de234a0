"""Prompts and prefixes as Hugging Face PEFT writes them: what their configs and tensors mean. Knows no file."""

from typing import Any

import torch
from torch import Tensor

from core.effects import KVPrefix, SoftPrompt
from core.peft_low_rank import number


def soft_prompt(config: dict[str, Any], tensors: dict[str, Tensor]) -> SoftPrompt:
    """What a PROMPT_TUNING or P_TUNING folder does. Raises ValueError."""
    return SoftPrompt(_embeddings(config, tensors))


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


def soft_prompt_tensors(effect: SoftPrompt) -> dict[str, Tensor]:
    """As a PROMPT_TUNING file holds them."""
    return {"prompt_embeddings": effect.prompt}


def kv_prefix_tensors(effect: KVPrefix) -> dict[str, Tensor]:
    """As a PREFIX_TUNING file holds them: [P, L * 2 * K * D], the key of a layer before its value."""
    both = torch.stack([effect.keys, effect.values], 1)  # [L, 2, P, K, D]
    return {"prompt_embeddings": both.permute(2, 0, 1, 3, 4).flatten(1)}
