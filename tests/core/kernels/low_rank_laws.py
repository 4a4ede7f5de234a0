"""The low-rank kernels equal the plain loop. Run on a GPU, or by test_kernels.py through Triton's interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import plain
from core.ops.plain import Part, Span
from core.ops.segments import NARROW, PAGE, WIDE, Group, alone, blocks_of, segments, width_for
from core.ops.triton_low_rank import LONG_INPUT, add_segments

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
PAGES = 24


def drawn(widths, inputs, dtype, seed=0):
    """A pool of PAGES pages at layers of these widths that read one input."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor(widths).cumsum(0)
    bounds = torch.stack([ends - torch.tensor(widths), ends]).int()
    a = torch.randn(PAGES, len(widths), PAGE, inputs, generator=generator).to(dtype) / inputs**0.5
    b = torch.randn(PAGES * PAGE, sum(widths), generator=generator).to(dtype)
    return Group(a.to(DEVICE), b.to(DEVICE), bounds.to(DEVICE), max(widths))


def expected(y, x, group, worn):
    """By the plain loop in fp64: of each token its adapter's pages."""
    out = y.double().cpu().clone()
    a, b, x = group.a.double().cpu(), group.b.double().cpu(), x.double().cpu()
    for member, (low, high) in enumerate(group.bounds.T.tolist()):
        parts, spans = [], []
        for n, pages in enumerate(worn):
            if pages:
                rows = [p * PAGE + r for p in pages for r in range(PAGE)]
                parts.append(Part(a[pages, member].reshape(-1, a.shape[3]), b[rows, low:high].T, 1.0))
                spans.append(Span(n, n + 1, len(parts) - 1))
        out[:, low:high] = plain.add_low_rank(out[:, low:high], x, parts, spans)
    return out


def blocked(worn, width):
    """Segments of these tokens, those of equal pages together."""
    owned = {}
    for n, pages in enumerate(worn):
        if pages:
            owned.setdefault(tuple(pages), []).append(n)
    return segments([(t, p) for p, t in blocks_of(list(owned.items()), width)], width, device=DEVICE)


pages_of_adapters = st.lists(st.lists(st.integers(0, PAGES - 1), max_size=9, unique=True), min_size=1, max_size=4)


@settings(max_examples=8, deadline=None)
@given(
    adapters=pages_of_adapters,
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    width=st.sampled_from([NARROW, WIDE]),
    inputs=st.sampled_from([5, 200, LONG_INPUT + 8]),
    widths=st.sampled_from([(7,), (130, 20, 20), (33, 33)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_ranks_any_rows_and_base_rows_equal_the_plain_loop(adapters, tokens, width, inputs, widths, dtype):  # noqa: PLR0917
    worn = [adapters[t] if t < len(adapters) else [] for t in tokens]
    if not any(worn):
        worn[0] = [0]
    group = drawn(widths, inputs, dtype)
    y, x = torch.randn(len(worn), sum(widths)).to(DEVICE, dtype), torch.randn(len(worn), inputs).to(DEVICE, dtype)
    here = add_segments(y.clone(), x, group, blocked(worn, width))
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    torch.testing.assert_close(here.double().cpu(), expected(y, x, group, worn), **tolerance)
    bare = [n for n, pages in enumerate(worn) if not pages]
    assert torch.equal(here[bare], y[bare])


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_bf16_is_rounded_once(width):
    """What is added is small beside y: rounding it on the way would not tell, rounding y twice would."""
    worn, group = [[1, 2], [3], [], [1, 2]], drawn((40,), 64, torch.bfloat16)
    y, x = torch.randn(4, 40).to(DEVICE, torch.bfloat16), torch.randn(4, 64).to(DEVICE, torch.bfloat16)
    once = expected(y, x, group, worn).to(torch.bfloat16)
    here = add_segments(y.clone(), x, group, blocked(worn, width)).cpu()
    assert (here != once).float().mean() < 0.02  # sums in fp32 fall on the other side of a rounding now and then
    thin = (x.cpu() @ group.a[1, 0].cpu().T).to(torch.bfloat16)
    twice = (y.cpu() + (thin @ group.b[PAGE : 2 * PAGE].cpu())).to(torch.bfloat16)
    assert (twice[0] != once[0]).float().mean() > 0.02


def test_a_table_of_fixed_shape_says_the_same_whoever_wears_what():
    group, y, x = drawn((24, 8), 64, torch.float32), torch.randn(6, 32).to(DEVICE), torch.randn(6, 64).to(DEVICE)
    for worn in ([[0], [], [5, 6, 7], [5, 6, 7], [], [2, 1]], [[]] * 6, [[9, 8]] * 6):
        table = alone(worn, reach=4, device=DEVICE)
        assert table.size == (6, 1, 4)
        here = add_segments(y.clone(), x, group, table)
        torch.testing.assert_close(here.double().cpu(), expected(y, x, group, worn), atol=1e-4, rtol=1e-4)


def test_columns_and_rows_of_a_wider_tensor_are_written_where_they_stand():
    group, whole = drawn((16,), 64, torch.float32), torch.randn(5, 48).to(DEVICE)
    x, before = torch.randn(5, 128).to(DEVICE)[:, 32:96], whole.clone()
    add_segments(whole[:, 16:32], x, group, blocked([[1], [2], [], [1], [3, 4]], NARROW))
    there = expected(before[:, 16:32], x, group, [[1], [2], [], [1], [3, 4]])
    torch.testing.assert_close(whole[:, 16:32].double().cpu(), there, atol=1e-4, rtol=1e-4)
    assert torch.equal(whole[:, :16], before[:, :16])
    assert torch.equal(whole[:, 32:], before[:, 32:])


def test_the_law_finds_a_page_that_is_another_adapters():
    group, y, x = drawn((16,), 64, torch.float32), torch.randn(2, 16).to(DEVICE), torch.randn(2, 64).to(DEVICE)
    here = add_segments(y.clone(), x, group, blocked([[1], [3]], NARROW))
    assert not torch.allclose(here.double().cpu(), expected(y, x, group, [[1], [2]]), atol=1e-2)


def test_blocks_are_wide_where_adapters_have_many_tokens():
    assert width_for([range(16), range(9)]) == WIDE
    assert width_for([range(1)] * 16) == NARROW
    with pytest.raises(ValueError, match="do not fit"):
        alone([[1, 2, 3]], reach=2)
