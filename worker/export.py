"""An adapter as it leaves the trainer: a Hugging Face PEFT folder, a card, and where it comes from, in one zip.

The same run writes the same bytes: nothing here depends on the clock, the machine's paths or the attempt.
"""

import functools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core import adapter_files, peft_files
from core.base.load import OpenBase
from core.effects import members_of
from core.methods import Method
from core.specs.assignment import Assignment
from worker import manifest
from worker.card import card_of_run


def export(
    method: Method,
    target: Path,
    *,
    assignment: Assignment,
    base: OpenBase,
    rows: int,
    step: int,
    metrics: Mapping[str, float],
    measured: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the zip target, whole or not at all, in the place of one that was there; returns target.

    rows: of the training file, as the trainer reads it. measured: what is known of it beyond details_of.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = _facts(method, assignment, base) | {
        "step": step,
        "metrics": dict(metrics),
        "dataset": _dataset(assignment, rows),
        **(measured or {}),
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        folder, fresh = Path(scratch) / "adapter", Path(scratch) / "adapter.zip"
        adapter_files.write(method, folder, assignment.base.id)
        config_file = adapter_files.first_folder(folder) / peft_files.CONFIG
        config = json.loads(config_file.read_text(encoding="utf-8"))
        (folder / peft_files.CARD).write_text(card_of_run(facts, config), encoding="utf-8")
        manifest.write(folder, facts)
        peft_files.pack(folder, fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(target)
    return target


def details_of(method: Method, base: OpenBase) -> dict[str, Any]:
    """What the registry keeps of an adapter beside its bytes."""
    with torch.no_grad():
        members = len(members_of(method.effect()))
    return {
        "origin": "training",
        "parameters": sum(p.numel() for p in method.parameters()),
        "peft_type": str(method.peft_config()["peft_type"]),
        "members": members,
        **manifest.facts_of_base(base),
    }


def _facts(method: Method, assignment: Assignment, base: OpenBase) -> dict[str, Any]:
    return {
        **details_of(method, base),
        "job_id": assignment.job_id,
        "base_model": assignment.base.id,
        "spec": assignment.spec.model_dump(mode="json"),
    }


def _dataset(assignment: Assignment, rows: int) -> dict[str, Any]:
    """The files by id, where it is known, and by content."""
    training = {"file_id": assignment.training_file_id, "rows": rows, **_file(assignment.training_file)}
    if assignment.validation_file is None:
        return {"training_file": training}
    validation = {"file_id": assignment.validation_file_id, **_file(assignment.validation_file)}
    return {"training_file": training, "validation_file": validation}


def _file(path: Path) -> dict[str, str | int]:
    stat = path.stat()
    return _file_once(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _file_once(path: Path, _size_bytes: int, _changed_ns: int) -> dict[str, str | int]:
    """A run exports several times, and its files may be large."""
    return manifest.file_facts(path)
