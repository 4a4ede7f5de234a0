"""A prefix reaches every layer, a prompt the first; an MLP makes a prefix learnable. Li and Liang 2021, section 4.3."""

from pathlib import Path

from benchmarks.claims.finding import Figure, Finding, at_least, mean
from benchmarks.claims.new_task import LENGTH, bare_prompts, on_new_tasks
from benchmarks.claims.toy import opened
from core.specs.method import PrefixTuningSpec

CLAIM = "at 8 virtual tokens a prefix learns more than a prompt, and one made by an MLP more than a direct one"
EXPECTED = {"prompt": (0.623, None), "prefix, direct": (0.869, 0.306), "prefix, MLP": (1.0, 0.016)}  # accuracy, loss


def measure(cache: Path) -> Finding:
    """Three methods."""
    toy = opened(cache)
    found = {
        "prompt": bare_prompts(cache),
        "prefix, direct": on_new_tasks(toy, PrefixTuningSpec(num_virtual_tokens=LENGTH, parametrization="kv")),
        "prefix, MLP": on_new_tasks(toy, PrefixTuningSpec(num_virtual_tokens=LENGTH, parametrization="mlp")),
    }
    accuracy = {name: mean([one.accuracy for one in some]) for name, some in found.items()}
    loss = {name: mean([one.last_loss for one in some]) for name, some in found.items()}
    prompt, direct, mlp = accuracy.values()
    return Finding(
        CLAIM,
        tuple(
            figure
            for name, (share, told) in EXPECTED.items()
            for figure in (
                Figure("accuracy", name, accuracy[name], share),
                Figure("last loss, nats", name, loss[name], told),
            )
        ),
        (
            at_least("direct prefix - prompt >= .1", direct - prompt, 0.1),
            at_least("MLP >= direct", mlp, direct),
        ),
    )
