"""How many seconds a run will take where no job of its kind was done yet. Pure arithmetic, of six sums of work.

operations  floating-point operations of matrix products, forward and backward, in units of the device's own speed at
            them: BaseShape.products_per_s, which an engine measures with core/speed.py when it opens the base
passes      bytes that norms, activations and additions read and write: N * (2 * L * H + outputs of all sites) * e
scores      bytes of attention's scores: 4 * (sum over rows of T^2) * L * heads
dense       of a base in 4 bits, bytes of the weights that each forward and backward computes anew
updates     bytes of weights and moments that an optimiser's step goes through
calls       layers entered: what an interpreter takes however few tokens there are

Each takes so long for its constant of core/measured_constants.py, which benchmarks/estimates.py fits.
"""

import math

from core.adapter_sizes import trained_parameters, worn_sites
from core.measured_constants import Constants
from core.specs.estimate import Amount, BaseShape
from core.specs.training import TrainSpec

WORK = ("operations", "passes", "scores", "dense", "updates", "calls")
UPDATE_BYTES = 16  # of a parameter: weight, gradient, two moments


def training_s(
    shape: BaseShape, spec: TrainSpec, amount: Amount, tokens_per_s: float, known: Constants
) -> tuple[float, float]:
    """Seconds of all epochs, and of all validations. tokens_per_s: of earlier jobs, 0 where there were none."""
    per_epoch = -(-amount.n_examples // spec.batch_size)
    validations = math.ceil(per_epoch * spec.n_epochs / (spec.eval_steps or per_epoch))
    seen = amount.validation_tokens * validations
    # A validation goes forward alone, which is about a third of a training step; of pairs, two readings of three.
    # With checkpointing a step is that third longer.
    share = (2 if spec.dpo else 1) / (4 if spec.activation_checkpointing else 3)
    if not tokens_per_s:
        epoch_s = seconds_of(work_of(shape, spec, amount), shape, known)
        tokens_per_s = amount.tokens / epoch_s if epoch_s else math.inf
    return amount.tokens * spec.n_epochs / tokens_per_s, seen * share / tokens_per_s


def seconds_of(work: dict[str, float], shape: BaseShape, known: Constants) -> float:
    """What work_of() finds, in seconds: by the speed that was measured, or else by a guess from operations alone."""
    if shape.products_per_s is None:
        return work["operations"] / known.operations_per_s
    in_seconds = work | {"operations": work["operations"] / shape.products_per_s}
    found: float = sum(getattr(known.pace, name) * in_seconds[name] for name in WORK)
    return found


def work_of(shape: BaseShape, spec: TrainSpec, amount: Amount) -> dict[str, float]:
    """Of one epoch."""
    e, members, largest = shape.value_bytes, spec.method.members, amount.largest
    steps = -(-amount.n_examples // spec.batch_size)
    tokens = amount.tokens * members
    forwards = steps * max(1, math.ceil(tokens / max(steps, 1) / spec.tokens_per_batch))
    squares = largest.squares * tokens / max(largest.tokens, 1)  # rows of the largest micro-batch are taken as any
    widths = 2 * shape.layers * shape.hidden + sum(site.width_out for site in shape.sites)
    is_nf4 = spec.method.base_precision == "nf4"
    return {
        "operations": operations(shape, spec, amount.tokens, amount.learned_tokens),
        "passes": float(tokens * widths * e),
        "scores": 4.0 * squares * shape.layers * shape.heads,
        "dense": float(forwards * shape.linear_parameters * e) if is_nf4 else 0.0,
        "updates": float(steps * trained_parameters(shape, spec.method) * UPDATE_BYTES),
        "calls": float(forwards * shape.layers),
    }


def operations(shape: BaseShape, spec: TrainSpec, tokens: int, learned: int) -> float:
    """Floating-point operations of so many tokens, forward and backward.

    A frozen weight costs 2 forward and 2 for the gradient of its input, a trained one 2 more for its own; the head is
    paid for learned tokens alone. Of pairs, what the answers are held to reads them too: 2 more. Checkpointing goes
    forward through the layers once more, and not through the head: 2 more for each of their weights.
    """
    trained = sum((site.width_in + site.width_out) * rank for site, rank in worn_sites(shape, spec.method))
    frozen, again = 6.0 if spec.dpo else 4.0, 2.0 if spec.activation_checkpointing else 0.0
    head = frozen * learned * shape.vocabulary * shape.hidden
    layers = (frozen + again) * shape.linear_parameters + (6.0 + again) * trained
    return spec.method.members * (tokens * layers + head)
