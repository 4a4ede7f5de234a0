"""How large each optimiser step is: a rise to the peak, then a curve down from it. A pure function of the step."""

import math
from collections.abc import Callable

from core.specs.training import TrainSpec

# The share of the peak that is left at a share of the way, 0 to 1, after the warm-up.
CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda way: 0.5 * (1 + math.cos(math.pi * way)),
    "linear": lambda way: 1 - way,
    "constant": lambda _: 1.0,
}


def learning_rate(spec: TrainSpec, step: int, of: int) -> float:
    """The rate of a step, counted from 1 up to of. Neither the first nor the last step's rate is zero."""
    warmup = math.ceil(spec.warmup_ratio * of)
    if step <= warmup:
        return spec.learning_rate * step / warmup
    return spec.learning_rate * CURVES[spec.lr_scheduler]((step - 1 - warmup) / (of - warmup))
