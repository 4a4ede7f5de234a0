"""MergedLinear as one LoRA: the same numbers as the authors' grouped convolution gives."""

import pytest
import torch
from torch.nn import functional

from core.peft_loralib import lora_of
from core.specs.inspection import MergedLinearSpec

SITE = "transformer.h.0.attn.c_attn"
SITES = [SITE, "transformer.h.10.attn.c_attn", "transformer.h.0.mlp.c_fc"]
WIDTH = 24


def matrices(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(spec.enable)
    down = torch.randn(count * spec.r, WIDTH, generator=generator, dtype=torch.float64)
    return down, torch.randn(count * WIDTH, spec.r, generator=generator, dtype=torch.float64)


def merged_linear(x, down, up, spec):
    """loralib.MergedLinear.forward without its frozen product: grouped convolution, then zeros for what is left out."""
    count = len(spec.enable)
    after_a = functional.linear(x, down)  # [T, m r]
    after_b = functional.conv1d(after_a.T[None], up[..., None], groups=count)[0].T  # [T, m O / 3]
    padded = x.new_zeros(len(x), 3, WIDTH)
    padded[:, ["qkv".index(part) for part in spec.enable]] = after_b.view(len(x), count, WIDTH)
    return padded.view(len(x), 3 * WIDTH) * (spec.alpha / spec.r)


@pytest.mark.parametrize("enable", [("q", "v"), ("q",), ("k", "v"), ("q", "k", "v")])
@pytest.mark.parametrize("r", [1, 4])
def test_one_lora_computes_what_the_grouped_convolution_does(enable, r):
    spec = MergedLinearSpec(r=r, alpha=32, enable=enable)
    down, up = matrices(spec)
    config, tensors = lora_of({f"{SITE}.lora_A": down, f"{SITE}.lora_B": up}, spec, SITES)
    a, b = (tensors[f"base_model.model.{SITE}.lora_{side}.weight"] for side in "AB")
    assert (config["r"], config["lora_alpha"]) == (len(enable) * r, len(enable) * 32)
    x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    here = x @ a.T @ b.T * (config["lora_alpha"] / config["r"])
    assert (here - merged_linear(x, down, up, spec)).abs().max() < 1e-6
    assert here.abs().max() > 1
    # Alpha as it stood, or the parts in one column block, would be wrong.
    assert (here / len(enable) - merged_linear(x, down, up, spec)).abs().max() > 1e-3 or len(enable) == 1


@pytest.mark.parametrize("prefix", ["", "transformer.", "module.transformer.", "model.transformer."])
def test_a_layer_is_found_by_the_end_of_its_name(prefix):
    spec = MergedLinearSpec(r=2, alpha=4)
    down, up = matrices(spec)
    name = f"{prefix}h.0.attn.c_attn"
    _, tensors = lora_of({f"{name}.lora_A": down, f"{name}.lora_B": up}, spec, SITES)
    assert set(tensors) == {f"base_model.model.{SITE}.lora_{side}.weight" for side in "AB"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{SITE}.lora_B": None}, "is missing of .*c_attn"),
        ({f"{SITE}.lora_A": torch.ones(3, WIDTH)}, "not r 2 for each of the parts q,v"),
        ({f"{SITE}.lora_B": torch.ones(2 * WIDTH, 3)}, "not r 2"),
        ({f"{SITE}.lora_B": torch.ones(2 * WIDTH + 1, 2)}, "not r 2"),
        ({f"{SITE}.lora_A": torch.ones(4)}, "not r 2"),
        ({f"{SITE}.weight": torch.ones(1)}, "weight is not understood"),
        ({"transformer.h.0.mlp.c_fc.lora_A": torch.ones(4, 4)}, "only lora_A and lora_B of c_attn"),
        ({"h.7.attn.c_attn.lora_A": torch.ones(4, WIDTH)}, "no layer of the base model is called h.7"),
    ],
)
def test_what_is_no_merged_linear_is_refused(change, reason):
    spec = MergedLinearSpec(r=2, alpha=4)
    down, up = matrices(spec)
    tensors = {f"{SITE}.lora_A": down, f"{SITE}.lora_B": up} | change
    with pytest.raises(ValueError, match=reason):
        lora_of({name: t for name, t in tensors.items() if t is not None}, spec, SITES)


def test_parts_stand_in_their_order():
    with pytest.raises(ValueError, match="q, k and v are expected in this order"):
        MergedLinearSpec(r=2, alpha=4, enable=("v", "q"))
