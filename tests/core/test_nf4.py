"""NF4: the codec that one reads, what it costs, and that bitsandbytes does the same."""

import bitsandbytes.functional as theirs
import pytest
import torch

from core.ops.nf4 import (
    BLOCK,
    GROUP,
    LEVELS,
    codes_of,
    dequantise,
    dynamic_map,
    pack,
    quantise,
    unpack,
    values_of,
)

# Four blocks of four whose codes are those of the worked example in the source document. Its own sixteen values are
# not at hand: these were chosen to have its codes, and every code is found below by brute force too.
WORKED = [[-0.21, -0.38, 2.1, 0.05], [-1.6, 0.1, -0.85, 1.17], [-0.05, 0.21, 0.15, -0.62], [-2.4, 1.7, -1.3, 1.36]]
SCALES = [2.1, 1.6, 0.62, 2.4]
CODES = [[6, 5, 15, 7], [0, 8, 2, 14], [6, 11, 10, 0], [0, 14, 2, 13]]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_worked_example_has_these_codes_scales_and_values():
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    codes, absmax = codes_of(torch.tensor(WORKED, dtype=torch.float64), levels, 4)

    assert codes.view(4, 4).tolist() == CODES
    assert absmax.tolist() == SCALES
    expected = [LEVELS[code] * scale for row, scale in zip(CODES, SCALES, strict=True) for code in row]
    assert values_of(codes, absmax, levels, 4).tolist() == pytest.approx(expected, abs=1e-15)


def test_the_codes_of_the_worked_example_are_the_nearest_levels_by_brute_force():
    for row, scale, codes in zip(WORKED, SCALES, CODES, strict=True):
        for value, code in zip(row, codes, strict=True):
            assert code == min(range(16), key=lambda i: abs(LEVELS[i] - value / scale))


def test_the_levels_are_quantiles_of_a_normal_distribution():
    offset = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    quantile = torch.distributions.Normal(0.0, 1.0).icdf
    positive = quantile(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -quantile(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    made = torch.cat([positive, negative, torch.zeros(1, dtype=torch.float64)]).sort().values

    found = (made / made.max() - torch.tensor(LEVELS, dtype=torch.float64)).abs().max()
    assert found < 2e-7


def test_of_two_levels_as_near_the_lower_is_taken():
    levels = torch.tensor([-1.0, 0.0, 1.0])
    codes, _ = codes_of(torch.tensor([1.0, 0.5, -0.5]), levels, 3)
    assert codes.tolist() == [2, 1, 0]


def test_a_block_of_zeros_and_a_short_last_block_come_back():
    weight = torch.cat([torch.zeros(BLOCK), normal(BLOCK), normal(7, seed=1)])
    codes, absmax = codes_of(weight, torch.tensor(LEVELS), BLOCK)

    assert codes[:BLOCK].tolist() == [7] * BLOCK
    assert absmax.tolist() == [0.0, float(weight[BLOCK:-7].abs().max()), float(weight[-7:].abs().max())]
    assert torch.equal(values_of(codes, absmax, torch.tensor(LEVELS), BLOCK)[:BLOCK], torch.zeros(BLOCK))


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_two_codes_share_a_byte_the_first_above(n):
    codes = torch.arange(n, dtype=torch.uint8) % 16
    assert len(pack(codes)) == (n + 1) // 2
    assert torch.equal(unpack(pack(codes), n), codes)
    assert pack(torch.tensor([3, 9], dtype=torch.uint8)).tolist() == [0x39]


def test_the_dynamic_map_is_that_of_bitsandbytes():
    assert torch.allclose(dynamic_map(), theirs.create_dynamic_map(), rtol=1e-6, atol=0)
    assert ((dynamic_map() < 0).sum(), (dynamic_map() > 0).sum()) == (127, 128)


def test_bitsandbytes_stores_the_same_codes_and_nearly_the_same_scales():
    weight = normal(1024, 1024)
    mine = quantise(weight)
    packed, state = theirs.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)

    assert torch.equal(packed.flatten(), mine.packed)
    steps = (state.absmax.int() - mine.scales.int()).abs()
    assert int(steps.max()) <= 1
    assert float((steps > 0).float().mean()) <= 0.005
    assert torch.equal(state.offset, mine.offset)
    assert torch.equal(state.state2.absmax, mine.peaks)


def test_the_double_quantised_scales_are_true_to_a_hundredth():
    weight = normal(1024, 1024)
    mine = quantise(weight)
    exact = codes_of(weight, torch.tensor(LEVELS), BLOCK)[1]
    found = values_of(mine.scales, mine.peaks, dynamic_map(), GROUP) + mine.offset

    assert float(((found - exact) / exact).abs().max()) <= 0.01


def test_what_is_stored_is_4_127_bits_a_parameter():
    mine = quantise(normal(1024, 1024))
    payload = mine.packed.numel() * 8
    plain_scales = mine.scales.numel() * 32  # without the second quantisation they would be fp32

    assert 100 * plain_scales / payload == 12.5
    assert 100 * mine.scales.numel() * 8 / payload == 3.125
    assert 100 * mine.peaks.numel() * 32 / payload == 0.048828125
    assert 100 * (mine.scales.numel() * 8 + mine.peaks.numel() * 32) / payload == 3.173828125
    assert (payload + plain_scales) / 1024**2 == 4.5
    assert mine.bits_per_entry() == 4.126953125


def rmse(levels, weight):
    codes, absmax = codes_of(weight, levels, BLOCK)
    return float((values_of(codes, absmax, levels, BLOCK) - weight.flatten()).square().mean().sqrt())


def symmetric(*magnitudes):
    return torch.tensor(sorted({sign * m / max(magnitudes) for m in magnitudes for sign in (-1, 1)}))


def test_nf4_errs_least_of_the_formats_with_one_scale_a_block():
    weight = normal(2048, 1024, seed=3)
    tables = {
        "nf4": (torch.tensor(LEVELS), 0.0920),
        "af4": (theirs.get_4bit_type("af4", device="cpu").sort().values, 0.0956),
        "e2m1": (symmetric(0, 0.5, 1, 1.5, 2, 3, 4, 6), 0.1057),
        "int4": (symmetric(*range(8)), 0.1077),
        "bitsandbytes fp4": (theirs.get_4bit_type("fp4", device="cpu").sort().values.unique(), 0.1219),
        "e3m0": (symmetric(0, 0.25, 0.5, 1, 2, 4, 8, 16), 0.188),
    }
    found = {name: rmse(levels, weight) for name, (levels, _) in tables.items()}

    assert found == {name: pytest.approx(expected, rel=0.01) for name, (_, expected) in tables.items()}
    assert list(found) == sorted(found, key=found.get)


def test_the_second_quantisation_adds_no_thousandth_to_the_error():
    weight = normal(1024, 1024)
    single = rmse(torch.tensor(LEVELS), weight)
    double = float((dequantise(quantise(weight)) - weight).square().mean().sqrt())
    assert single < double < 1.001 * single


def test_another_block_or_the_wrong_half_first_would_show():
    weight = normal(64, 64)
    mine = quantise(weight)
    swapped = (mine.packed << 4) | (mine.packed >> 4)
    packed, _ = theirs.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert not torch.equal(packed.flatten(), swapped)
    other, _ = theirs.quantize_4bit(weight, quant_type="nf4", blocksize=128, compress_statistics=True)
    assert not torch.equal(other.flatten(), mine.packed)
