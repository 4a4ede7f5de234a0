"""Prompt tuning: longer prompts learn more, up to about 20 tokens. Lester et al. 2021, section 3.2."""

from pathlib import Path

from benchmarks.claims.finding import Figure, Finding, ascending, at_most, mean
from benchmarks.claims.new_task import on_new_tasks
from benchmarks.claims.toy import opened
from core.specs.method import PromptTuningSpec

CLAIM = "longer prompts learn more, and beyond 20 tokens hardly more"
EXPECTED = {1: (1.97, 0.54), 2: (1.45, 0.59), 5: (0.88, 0.63), 20: (0.57, 0.73), 40: (0.60, 0.69)}  # loss, accuracy


def measure(cache: Path) -> Finding:
    """Five lengths."""
    toy = opened(cache)
    found = {length: on_new_tasks(toy, PromptTuningSpec(num_virtual_tokens=length)) for length in EXPECTED}
    loss = {length: mean([one.last_loss for one in some]) for length, some in found.items()}
    accuracy = {length: mean([one.accuracy for one in some]) for length, some in found.items()}
    return Finding(
        CLAIM,
        tuple(
            figure
            for length, (told, share) in EXPECTED.items()
            for figure in (
                Figure("last loss, nats", f"{length} tokens", loss[length], told),
                Figure("accuracy", f"{length} tokens", accuracy[length], share),
            )
        ),
        (
            ascending("loss(20) < loss(5) < loss(1)", [loss[20], loss[5], loss[1]]),
            at_most("|loss(40) - loss(20)| < .15 loss(1)", abs(loss[40] - loss[20]), 0.15 * loss[1]),
        ),
    )
