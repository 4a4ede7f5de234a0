"""graft.json, an adapter's manifest: which bytes, for which base model, from where. It lies in every adapter's zip.

Nothing in it depends on the clock, the machine's paths or the attempt, so the same adapter has the same manifest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.base.load import OpenBase
from core.blobs import blob_of
from core.specs.method import BasePrecision

NAME = "graft.json"
FORMAT = 2
PRECISIONS = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}
NF4 = {"quant_type": "nf4", "block_size": 64, "double_quant": True}  # as core/base opens it


def facts_of_base(base_model: str, base: OpenBase) -> dict[str, str]:
    """What an adapter must know of the model that it changes."""
    return {
        "base_model": base_model,
        "base_revision_sha256": base.revision,
        "chat_template_sha256": base.template_sha256,
        "computed_in": PRECISIONS[str(base.dtype)],
    }


def quantisation(base_precision: BasePrecision | str, computed_in: str) -> dict[str, Any] | None:
    """How the base's weights are packed; None where they are not."""
    return NF4 | {"compute_dtype": computed_in} if base_precision == "nf4" else None


def file_facts(path: Path) -> dict[str, str | int]:
    """A file by its content."""
    blob = blob_of(path)
    return {"sha256": blob.sha256, "size_bytes": blob.size_bytes}


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """The manifest of a folder that is otherwise whole: facts, and each file in it, however deep."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    files = {path.relative_to(folder).as_posix(): file_facts(path) for path in paths}
    manifest = {"format": FORMAT, **facts, "files": files}
    (folder / NAME).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
