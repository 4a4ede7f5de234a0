"""The NF4 product equals dequantising first. Run on a GPU, or by test_kernels.py through Triton's interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops.nf4 import FEW, LEVELS, can_multiply, dequantise, dynamic_map, quantise
from core.ops.triton_nf4 import Weight, product

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def drawn(outputs, inputs, seed=0):
    """A weight in NF4, and what its bits stand for in fp32."""
    made = quantise(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)))
    parts = (made.packed, made.scales, made.peaks, made.offset, torch.tensor(LEVELS), dynamic_map())
    return Weight(*(t.to(DEVICE) for t in parts)), dequantise(made)


@settings(max_examples=10, deadline=None)
@given(
    outputs=st.sampled_from([1, 31, 70]),
    inputs=st.sampled_from([2, 64, 90, 576]),
    tokens=st.sampled_from([1, 5, 16, 33]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
)
def test_any_shape_equals_dequantising_first(outputs, inputs, tokens, dtype, has_bias):
    weight, dense = drawn(outputs, inputs)
    x = torch.randn(tokens, inputs).to(DEVICE, dtype)
    bias = torch.randn(outputs).to(DEVICE, dtype) if has_bias else None
    exact = x.double().cpu() @ dense.to(dtype).double().T + (0 if bias is None else bias.double().cpu())
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    torch.testing.assert_close(product(x, weight, bias, outputs).double().cpu(), exact, **tolerance)


def test_entries_are_rounded_to_the_type_of_x_before_they_multiply():
    weight, dense = drawn(32, 64)
    here = product(torch.eye(64, device=DEVICE, dtype=torch.bfloat16), weight, None, 32)
    assert torch.equal(here.T.cpu(), dense.bfloat16())
    assert torch.equal(product(torch.eye(64, device=DEVICE), weight, None, 32).T.cpu(), dense)


@pytest.mark.parametrize("part", ["packed", "scales", "peaks", "offset"])
def test_the_law_finds_any_part_that_is_another_weights(part):
    weight, dense = drawn(32, 64)
    other, _ = drawn(32, 64, seed=1)
    x = torch.eye(64, device=DEVICE)
    wrong = product(x, weight._replace(**{part: getattr(other, part)}), None, 32)
    assert not torch.allclose(wrong.T.cpu(), dense, atol=1e-4)


def test_what_it_cannot_multiply_it_says():
    assert can_multiply(FEW, 64)
    assert not can_multiply(FEW + 1, 64)
    assert not can_multiply(1, 63)
