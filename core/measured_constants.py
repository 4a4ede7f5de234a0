"""What no formula knows of a run's memory and pace, measured by benchmarks/estimates.py: one table, numbers alone."""

from collections.abc import Mapping
from dataclasses import dataclass

# By how much of the measured peak the foretold one was too high and too low at worst, where each configuration was
# foretold by constants fitted to all the others (each_left_out.memory_worst of benchmarks/results/estimates.json),
# rounded up. Between what both leave, nobody knows whether a job fits.
TOO_HIGH, TOO_LOW = 0.05, 0.06


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
    bitsandbytes: float  # bytes, where it is loaded
    hidden: float
    outputs: float
    inputs: float
    ranks: float
    scores: float
    head: float
    adapter: float
    operations_per_s: float  # floating-point, in training; a guess where no engine has measured the device
    opening_s: float  # until the first step
    pace: Pace


# Of a CPU: fitted by benchmarks/estimates.py --fit. Of a GPU nothing was measured: activations as on a CPU; the
# process is the CUDA context, its size and the speed are guesses.
CONSTANTS: Mapping[str, Constants] = {
    "cpu": Constants(
        process=480.0e6,
        bitsandbytes=53.5e6,
        hidden=0.0,
        outputs=1.532,
        inputs=0.581,
        ranks=0.0,
        scores=0.4959,
        head=2.506,
        adapter=0.8016,
        operations_per_s=38.6e9,
        opening_s=6.0,
        pace=Pace(operations=1.746, scores=2.777e-9, calls=5.702e-3),
    ),
    "cuda": Constants(
        process=700e6,
        bitsandbytes=0.0,
        hidden=0.0,
        outputs=1.532,
        inputs=0.581,
        ranks=0.0,
        scores=0.4959,
        head=2.506,
        adapter=0.8016,
        operations_per_s=60e12,
        opening_s=10.0,
        pace=Pace(operations=1.746),
    ),
}
