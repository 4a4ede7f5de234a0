"""An adapter as it leaves the trainer: a Hugging Face PEFT folder, a card, and where it comes from, in one zip.

The same run writes the same bytes: nothing here depends on the clock, the machine's paths or the attempt.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import peft_files
from core.base.load import NAMES, OpenBase
from core.methods import Method
from core.specs.assignment import Assignment

FORMAT = 1


def export(
    method: Method,
    target: Path,
    *,
    assignment: Assignment,
    base: OpenBase,
    step: int,
    metrics: Mapping[str, float],
    measured: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the zip target, whole or not at all, in the place of one that was there; returns target.

    measured: what is known of it beyond details_of.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    origin = _origin(method, assignment, base, step, metrics) | dict(measured or {})
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        folder, fresh = Path(scratch) / "adapter", Path(scratch) / "adapter.zip"
        peft_files.write(method, folder, assignment.base.id)
        (folder / "graft.json").write_text(json.dumps(origin, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / peft_files.CARD).write_text(_card(origin), encoding="utf-8")
        peft_files.pack(folder, fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(target)
    return target


def details_of(method: Method, base: OpenBase) -> dict[str, Any]:
    """What the registry keeps of an adapter beside its bytes."""
    quantisation = base.quantisation
    return {
        "parameters": sum(p.numel() for p in method.parameters()),
        "peft_type": str(method.peft_config()["peft_type"]),
        "base_precision": base.base_precision,
        "computed_in": NAMES[base.dtype],
        "base_revision_sha256": base.revision,
        "chat_template_sha256": base.template_sha256,
        **({"base_quantisation": quantisation} if quantisation else {}),
    }


def _origin(
    method: Method, assignment: Assignment, base: OpenBase, step: int, metrics: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "job_id": assignment.job_id,
        "base_model": assignment.base.id,
        "step": step,
        "metrics": dict(metrics),
        "spec": assignment.spec.model_dump(mode="json"),
        **details_of(method, base),
    }


def _card(origin: Mapping[str, Any]) -> str:
    spec, name = origin["spec"], json.dumps(origin["base_model"])
    rows = {
        "base model": f"`{origin['base_model']}` (weights sha256 `{origin['base_revision_sha256']}`)",
        "base precision": f"{origin['base_precision']}, computed in {origin['computed_in']}",
        "method": f"`{json.dumps(spec['method'], sort_keys=True)}`",
        "trained parameters": f"{origin['parameters']:,}",
        "step": f"{origin['step']} ({spec['n_epochs']} epochs in all, {spec['batch_size']} rows a step)",
        **{metric.replace("_", " "): f"{value:.4f}" for metric, value in sorted(origin["metrics"].items())},
        "chat template": f"sha256 `{origin['chat_template_sha256']}`",
    }
    return (
        f"---\nbase_model: {name}\nlibrary_name: peft\npipeline_tag: text-generation\n---\n\n"
        f"# A {origin['peft_type']} adapter of {origin['base_model']}\n\n"
        "| | |\n|---|---|\n"
        + "".join(f"| {label} | {value} |\n" for label, value in rows.items())
        + "\nIn the format of Hugging Face PEFT: `PeftModel.from_pretrained(base_model, folder)` loads it. Everything "
        "that it was trained with stands in `graft.json`.\n"
    )
