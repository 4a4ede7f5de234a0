"""The decoding kernel equals attention written out. Run on a GPU, or by test_kernels.py through the interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops.triton_decode import SPAN, attend

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
LENGTH = 2 * SPAN + 40


def written_out(q, keys, values, slots, entries, *, scaling, window, softcap):
    """Row by row and head by head, in fp64."""
    heads, rows, width = q.shape
    group, out = heads // keys.shape[1], torch.empty(rows, heads, width, dtype=torch.float64)
    for row, (slot, last) in enumerate(zip(slots, entries, strict=True)):
        low = 0 if window is None else max(0, last - window + 1)
        for head in range(heads):
            k, v = (t[slot, head // group, low : last + 1].double().cpu() for t in (keys, values))
            score = q[head, row].double().cpu() @ k.T * scaling
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            out[row, head] = torch.softmax(score, 0) @ v
    return out


def made(heads, groups, width, rows, dtype):
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(4, groups, LENGTH, width, generator=generator).to(DEVICE, dtype) for _ in range(2))
    q = torch.randn(heads, rows, width, generator=generator).to(DEVICE, dtype)
    return q, keys, values


def asked(q, keys, values, slots, entries, *, reach=None, **how):
    places = (torch.tensor(t, device=DEVICE) for t in (slots, entries))
    return attend(q, keys, values, *places, reach=reach or max(entries) + 1, **how).double().cpu()


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, LENGTH - 1)), min_size=1, max_size=3),
    shape=st.sampled_from([(3, 1, 64), (4, 4, 16), (6, 2, 40)]),
    window=st.sampled_from([None, 1, 70, 300]),
    softcap=st.sampled_from([None, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_of_any_length_in_any_slot_equal_attention_written_out(rows, shape, window, softcap, dtype):
    slots, entries = ([row[i] for row in rows] for i in (0, 1))
    q, keys, values = made(*shape, len(rows), dtype)
    how = {"scaling": 0.3, "window": window, "softcap": softcap}
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    here = asked(q, keys, values, slots, entries, **how)
    torch.testing.assert_close(
        here, written_out(q, keys, values, slots, entries, **how), atol=tolerance, rtol=tolerance
    )


def test_the_reach_asked_for_changes_nothing_but_how_many_programs_there_are():
    q, keys, values = made(3, 1, 64, 2, torch.float32)
    how = {"scaling": 0.125, "window": None, "softcap": None}
    near, far = (asked(q, keys, values, [2, 0], [5, 270], reach=reach, **how) for reach in (271, LENGTH))
    assert torch.equal(near, far)


def test_what_lies_past_a_rows_end_is_not_read_though_it_be_no_number():
    q, keys, values = made(3, 1, 64, 1, torch.float32)
    how = {"scaling": 0.125, "window": None, "softcap": None}
    before = asked(q, keys, values, [1], [99], **how)
    keys[1, :, 100:], values[1, :, 100:], keys[0], values[2] = (float("nan"),) * 4
    assert torch.equal(asked(q, keys, values, [1], [99], reach=LENGTH, **how), before)


def test_a_prefix_is_the_first_entries_and_is_read_as_the_others_are():
    q, keys, values = made(3, 1, 64, 1, torch.float32)
    how = {"scaling": 0.125, "window": None, "softcap": None}
    before = asked(q, keys, values, [1], [40], **how)
    keys[1, :, :4] += 1
    assert not torch.allclose(asked(q, keys, values, [1], [40], **how), before, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"window": 3}, {"softcap": 1.0}, {"scaling": 0.2}])
def test_the_law_finds_another_window_cap_or_scale(wrong):
    q, keys, values = made(3, 1, 64, 1, torch.float32)
    how = {"scaling": 0.125, "window": None, "softcap": None}
    here, other = asked(q, keys, values, [1], [40], **how), written_out(q, keys, values, [1], [40], **how | wrong)
    assert not torch.allclose(here, other, atol=1e-3)
