"""graft.json, an adapter's manifest: which bytes, for which base model, from where. It lies in every adapter's zip.

Nothing in it depends on the clock, the machine's paths or the attempt, so the same adapter has the same manifest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.base.load import NAMES, OpenBase
from core.blobs import blob_of

NAME = "graft.json"
FORMAT = 2


def facts_of_base(base: OpenBase) -> dict[str, Any]:
    """What an adapter must know of the model that it changes."""
    quantisation = base.quantisation
    return {
        "base_precision": base.base_precision,
        "computed_in": NAMES[base.dtype],
        "base_revision_sha256": base.revision,
        "chat_template_sha256": base.template_sha256,
        **({"base_quantisation": quantisation} if quantisation else {}),
    }


def file_facts(path: Path) -> dict[str, str | int]:
    """A file by its content."""
    blob = blob_of(path)
    return {"sha256": blob.sha256, "size_bytes": blob.size_bytes}


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """The manifest of a folder that is otherwise whole: facts, and each file of it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    files = {path.relative_to(folder).as_posix(): file_facts(path) for path in paths}
    manifest = {"format": FORMAT, **facts, "files": files}
    (folder / NAME).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
