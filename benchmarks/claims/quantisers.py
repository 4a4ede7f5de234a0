"""NF4 rounds normal weights with the least error of formats of one scale a block. Dettmers et al. 2023, section 3."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims.finding import Check, Figure, Finding, ascending, at_most
from core.ops.nf4 import BLOCK, LEVELS, codes_of, dequantise, quantise, values_of

CLAIM = "NF4 has the least error on normal weights, and double quantisation adds hardly any"
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E3M0 = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BITSANDBYTES = (0.0, 1 / 192, 1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 1.0)
# Yoshida 2023, arXiv:2306.06965: levels that are optimal for the largest of 64.
AF4 = (
    *(-1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0),
    *(0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0),
)


def signed(magnitudes: tuple[float, ...]) -> tuple[float, ...]:
    """Both signs of each, ascending, over the largest; zero once."""
    return tuple(sorted({sign * m / max(magnitudes) for m in magnitudes for sign in (-1, 1)}))


FORMATS = {  # levels, RMSE over sigma at blocks of 64; in the order that must hold
    "NF4": (LEVELS, 0.0920),
    "AF4": (AF4, 0.0956),
    "FP4, E2M1": (signed(E2M1), 0.1057),
    "int4, by the largest": (signed(tuple(range(8))), 0.1077),
    "FP4, bitsandbytes": (signed(BITSANDBYTES), 0.1219),
    "FP4, E3M0": (signed(E3M0), 0.188),
}
BY_BLOCK = {32: 0.0873, 64: 0.0920, 128: 0.0956, 256: 0.0988, 1024: 0.1045, 4096: 0.1102}
DOUBLE = 0.091996


def measure(cache: Path) -> Finding:
    """Rounds 4 million normal numbers in every way."""
    del cache
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    error = {name: rmse(weight, rounded(weight, levels, BLOCK)) for name, (levels, _) in FORMATS.items()}
    by_block = {block: rmse(weight, rounded(weight, LEVELS, block)) for block in BY_BLOCK}
    double = rmse(weight, dequantise(quantise(weight)))
    figures = [
        *(Figure("RMSE over sigma, blocks of 64", name, error[name], told) for name, (_, told) in FORMATS.items()),
        Figure("RMSE over sigma, blocks of 64", "NF4, double quantisation", double, DOUBLE),
        *(Figure("RMSE over sigma, NF4", f"blocks of {block}", by_block[block], t) for block, t in BY_BLOCK.items()),
    ]
    return Finding(
        CLAIM,
        tuple(figures),
        (
            ascending(" < ".join(FORMATS), list(error.values())),
            _within("every RMSE within 1 % of what is expected", figures),
            at_most("double quantisation changes the RMSE by < .1 %", abs(double / error["NF4"] - 1), 0.001),
        ),
    )


def rounded(weight: Tensor, levels: tuple[float, ...], block: int) -> Tensor:
    """Each entry at its nearest level; one fp32 scale for each block, its largest magnitude."""
    table = torch.tensor(levels)
    return values_of(*codes_of(weight, table, block), table, block).view(weight.shape)


def rmse(weight: Tensor, other: Tensor) -> float:
    """Over the deviation of weight."""
    return float((weight - other).square().mean().sqrt() / weight.std())


def _within(says: str, figures: list[Figure]) -> Check:
    return at_most(says, max(abs(f.measured / f.expected - 1) for f in figures if f.expected), 0.01)
