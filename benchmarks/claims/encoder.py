"""P-tuning: an encoder makes the same virtual tokens easier to learn. Liu et al. 2021, section 3.2."""

from pathlib import Path

from benchmarks.claims.finding import Figure, Finding, at_least, mean
from benchmarks.claims.new_task import LENGTH, bare_prompts, on_new_tasks
from benchmarks.claims.toy import opened
from core.specs.method import PTuningSpec

CLAIM = "an LSTM and an MLP before 8 virtual tokens learn at least what the bare tokens do"
EXPECTED = {"bare prompt": 0.623, "LSTM and MLP": 0.724}


def measure(cache: Path) -> Finding:
    """With and without."""
    spec = PTuningSpec(template=f"{{v:{LENGTH}}}{{input}}{{target}}", encoder_reparameterization_type="LSTM")
    found = {"bare prompt": bare_prompts(cache), "LSTM and MLP": on_new_tasks(opened(cache), spec)}
    accuracy = {name: mean([one.accuracy for one in some]) for name, some in found.items()}
    bare, encoded = accuracy.values()
    return Finding(
        CLAIM,
        tuple(Figure("accuracy", name, accuracy[name], EXPECTED[name]) for name in EXPECTED),
        (at_least("encoder >= bare", encoded, bare),),
    )
