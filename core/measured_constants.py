"""What no formula knows of a run's memory and pace, measured by benchmarks/estimates.py: one table, numbers alone."""

from collections.abc import Mapping
from dataclasses import dataclass

# By how much of the measured peak the foretold one was too high and too low at worst (memory_worst in the summary of
# benchmarks/results/estimates.json), rounded up. Between what both leave, nobody knows whether a job fits.
TOO_HIGH, TOO_LOW = 0.09, 0.08


@dataclass(frozen=True)
class Pace:
    """Seconds for each unit of the sums in core/pace.py."""

    operations: float  # times what the device's own speed at products makes of them
    passes: float = 0.0
    scores: float = 0.0
    dense: float = 0.0
    updates: float = 0.0
    calls: float = 0.0


@dataclass(frozen=True)
class Constants:
    """What no formula knows: measured. Those of activations say how often a part is kept, in units of the formula."""

    process: float  # bytes
    hidden: float
    outputs: float
    inputs: float
    ranks: float
    scores: float
    dense: float
    head: float
    adapter: float
    operations_per_s: float  # floating-point, in training; a guess where no engine has measured the device
    opening_s: float  # until the first step
    pace: Pace


# Of a CPU: fitted by benchmarks/estimates.py --fit. Of a GPU nothing was measured: activations as on a CPU, but that
# its 4-bit layers keep no dense weights; the process is the CUDA context, its size and the speed are guesses.
CONSTANTS: Mapping[str, Constants] = {
    "cpu": Constants(
        process=470.8e6,
        hidden=0.0,
        outputs=1.471,
        inputs=0.838,
        ranks=0.0,
        scores=0.8192,
        dense=1.34,
        head=2.49,
        adapter=0.7604,
        operations_per_s=38.6e9,
        opening_s=6.0,
        pace=Pace(operations=1.746, scores=2.777e-9, calls=5.702e-3),
    ),
    "cuda": Constants(
        process=700e6,
        hidden=0.0,
        outputs=1.471,
        inputs=0.838,
        ranks=0.0,
        scores=0.8192,
        dense=0.0,
        head=2.49,
        adapter=0.7604,
        operations_per_s=60e12,
        opening_s=10.0,
        pace=Pace(operations=1.746),
    ),
}
