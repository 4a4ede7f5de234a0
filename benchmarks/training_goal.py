"""The part of benchmarks/training.py about a goal: the validation loss that TRL's defaults come to."""

from typing import Any

from rich.table import Table

from benchmarks.training_bench import LORA, Arm, Bench, Found, console

STEPS, BATCH, EVERY, HELD_OUT = 100, 2, 5, 32  # optimiser steps, rows of each, steps between validations, rows of those
RATE = 2e-4  # LoRA's own here, where a job names none


def to_loss(bench: Bench) -> Found:
    """CPU seconds of training to the validation loss that TRL's defaults reach in a hundred steps of two rows.

    What validations take is not counted, on either side. TRL's default rate is a tenth of what suits LoRA, so it is run
    at our rate too: the one ratio is what a user gains who names nothing, the other what our steps gain.
    """
    shared = {"arm": "to_loss", "method": LORA, "precision": "fp32", "steps": STEPS, "batch": BATCH, "every": EVERY}
    shared |= {"held_out": HELD_OUT}
    default = bench.found(Arm("peer", shared))
    goal = {"goal": default["curve"][-1]["loss"]}
    arms = {
        "trl_default": default,
        "trl_at_our_rate": bench.found(Arm("peer", shared | goal | {"rate": RATE})),
        "ours": bench.found(Arm("ours", shared | goal | {"rate": RATE})),
    }
    ours = arms["ours"]["curve"][-1]
    found = {name: _told(arm["curve"], ours) for name, arm in arms.items()}
    _show(found)
    return {"goal": goal["goal"], "runs": found, "steps": STEPS, "batch": BATCH, "validated_every": EVERY}


def _told(curve: list[dict[str, Any]], ours: dict[str, Any]) -> Found:
    last = curve[-1]
    return {**last, "ours_is_of_it": ours["cpu_s"] / last["cpu_s"], "curve": curve}


def _show(found: Found) -> None:
    table = Table("run", "steps", "CPU seconds", "validation loss", "ours takes of it")
    for name, one in found.items():
        figures = f"{one['cpu_s']:.1f}", f"{one['loss']:.4f}", f"{one['ours_is_of_it']:.2f}"
        table.add_row(name, str(one["step"]), *figures)
    console.print(table)
