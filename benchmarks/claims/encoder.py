"""P-tuning: an encoder makes the same virtual tokens easier to learn. Liu et al. 2021, section 3.2."""

from pathlib import Path

from benchmarks.claims.finding import Figure, Finding, at_least, mean
from benchmarks.claims.new_task import on_new_tasks
from benchmarks.claims.toy import opened
from core.specs.method import MethodSpec, PromptTuningSpec, PTuningSpec

CLAIM = "an LSTM and an MLP before 8 virtual tokens learn at least what the bare tokens do"
EXPECTED = {"bare prompt": 0.623, "LSTM and MLP": 0.724}


def measure(cache: Path) -> Finding:
    """With and without."""
    toy = opened(cache)
    specs: dict[str, MethodSpec] = {
        "bare prompt": PromptTuningSpec(num_virtual_tokens=8),
        "LSTM and MLP": PTuningSpec(template="{v:8}{input}{target}"),
    }
    accuracy = {name: mean([one.accuracy for one in on_new_tasks(toy, spec)]) for name, spec in specs.items()}
    bare, encoded = accuracy.values()
    return Finding(
        CLAIM,
        tuple(Figure("accuracy", name, accuracy[name], EXPECTED[name]) for name in specs),
        (at_least("encoder >= bare", encoded, bare),),
    )
