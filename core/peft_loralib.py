"""Files of microsoft/LoRA (loralib): the MergedLinear of GPT-2's c_attn, as one LoRA that PEFT can say. Knows no file.

MergedLinear (Hu et al. 2021's own code) gives each enabled part of the fused query, key and value a product of its
own: for m parts lora_A is [m r, I], the parts' A under one another, lora_B [m O / 3, r], their B under one another. The
same is one product of rank m r whose B is zero but for a block of each enabled part; alpha / r stays, so alpha' = m
alpha.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from core.peft_low_rank import ROOT
from core.specs.inspection import MergedLinearSpec

PARTS = "qkv"  # as c_attn's outputs stand
_MATRIX = re.compile(r"(?P<site>.+)\.lora_(?P<side>[AB])")


def lora_of(
    tensors: Mapping[str, Tensor], spec: MergedLinearSpec, sites: Collection[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A LORA config and the tensors that go with it. sites: the base model's layers, by whose ends names are found.

    Raises:
        ValueError: a tensor is not understood, has no counterpart or another shape than r and enable ask for.

    """
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = _MATRIX.fullmatch(name)
        if match is None or not match["site"].endswith("c_attn"):
            raise ValueError(f"tensor {name} is not understood: only lora_A and lora_B of c_attn layers are")
        sides[match["side"]][_site(match["site"], sites)] = tensor
    downs, ups = sides["A"], sides["B"]
    if downs.keys() != ups.keys():
        raise ValueError(f"lora_A or lora_B is missing of {sorted(downs.keys() ^ ups.keys())[:8]}")
    merged: dict[str, Tensor] = {}
    for site, down in downs.items():
        merged[f"{ROOT}{site}.lora_A.weight"] = down
        merged[f"{ROOT}{site}.lora_B.weight"] = _spread(site, down, ups[site], spec)
    return _config(spec, downs), merged


def _spread(site: str, down: Tensor, up: Tensor, spec: MergedLinearSpec) -> Tensor:
    """B as one matrix [O, m r]: each enabled part's [O / 3, r] in its own rows and its own columns."""
    count, r = len(spec.enable), spec.r
    shapes = tuple(down.shape), tuple(up.shape)
    if down.dim() != 2 or up.dim() != 2 or len(down) != count * r or up.shape[1] != r or len(up) % count:  # noqa: PLR2004 - matrices
        parts = ",".join(spec.enable)
        raise ValueError(f"{site}: lora_A and lora_B are {shapes}, which is not r {r} for each of the parts {parts}")
    rows = len(up) // count
    spread = torch.zeros(len(PARTS) * rows, count * r, dtype=up.dtype)
    for number, part in enumerate(spec.enable):
        first = PARTS.index(part) * rows
        spread[first : first + rows, number * r : (number + 1) * r] = up[number * rows : (number + 1) * rows]
    return spread


def _site(name: str, sites: Collection[str]) -> str:
    """The one layer whose name ends as this one does: checkpoints leave out, or put in, what stands before h.0."""
    plain = name.removeprefix("module.")
    meant = [site for site in sites if f".{site}".endswith(f".{plain}") or f".{plain}".endswith(f".{site}")]
    if len(meant) != 1:
        raise ValueError(f"no layer of the base model is called {name}: these files are of GPT-2's c_attn")
    return meant[0]


def _config(spec: MergedLinearSpec, downs: Mapping[str, Tensor]) -> dict[str, Any]:
    count = len(spec.enable)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": count * spec.r,
        "lora_alpha": count * spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(downs),
        "fan_in_fan_out": True,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
