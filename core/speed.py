"""How fast a device multiplies matrices of the size that a base model's layers have: measured, in a moment."""

import time

import torch

from core.specs.estimate import BaseShape

TOKENS = 256  # rows of the left matrix: about a micro-batch of short examples
ROUNDS, ENOUGH_S = 7, 0.5  # at most so many, and none begun later than that


def with_speed(shape: BaseShape, device: torch.device, dtype: torch.dtype) -> BaseShape:
    """The same shape and the speed beside it. Takes a tenth of a second, or one where dtype is slow there."""
    return shape.model_copy(update={"products_per_s": products_per_s(shape, device, dtype)})


def products_per_s(shape: BaseShape, device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one layer's products, [TOKENS, in] by [in, out]: of the quickest round."""
    sizes = {(site.width_in, site.width_out) for site in shape.sites}
    pairs = [
        (torch.randn(TOKENS, a, device=device, dtype=dtype), torch.randn(b, a, device=device, dtype=dtype))
        for a, b in sorted(sizes)
    ]
    done = sum(2.0 * TOKENS * a * b for a, b in sizes)
    rounds, begun = [_round_s(pairs, device)], time.perf_counter()
    while len(rounds) < ROUNDS and time.perf_counter() - begun < ENOUGH_S:
        rounds.append(_round_s(pairs, device))
    return done / min(rounds)


def _round_s(pairs: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> float:
    begun = time.perf_counter()
    for left, right in pairs:
        torch.nn.functional.linear(left, right)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
