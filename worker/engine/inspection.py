"""A stranger's adapter, read, held against this engine's base model, and kept as one of ours: POST /inspect.

What is checked is the very zip that will be served. Runs in a thread beside the step loop and touches no row of it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from core import imports, peft_files
from core.blobs import BlobStore, MissingBlob
from core.effects import members_of
from core.imports import Foreign
from core.model import RoutedModel
from core.specs.inspection import Inspected, InspectSpec
from worker import manifest
from worker.card import card_of_import
from worker.engine.intake import Refused
from worker.engine.residency import read_sound


class Inspector:
    """One an engine."""

    def __init__(self, store: BlobStore, cache_dir: Path, model: RoutedModel, base: Mapping[str, object]) -> None:
        """base: manifest.facts_of_base of the model."""
        self._store, self._cache_dir, self._model, self._base = store, cache_dir, model, base

    def inspect(self, spec: InspectSpec) -> Inspected:
        """Stores the adapter in our normal form and says what it is. Raises Refused 400; nothing is stored then."""
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache_dir, prefix="inspect-") as scratch:
            try:
                upload = self._store.fetch(spec.file_sha256, Path(scratch) / "upload")
                return self._kept(spec, self._read(spec, upload), Path(scratch))
            except MissingBlob as error:
                raise Refused(400, "file_not_found", "the file is not in the store", "file") from error
            except ValueError as error:
                raise Refused(400, "invalid_adapter", str(error), "file") from error

    def _read(self, spec: InspectSpec, upload: Path) -> Foreign:
        if spec.merged_linear is not None:
            return imports.read_loralib(upload, spec.merged_linear, self._model.sites)
        return imports.read_peft(upload, spec.base_model)

    def _kept(self, spec: InspectSpec, foreign: Foreign, scratch: Path) -> Inspected:
        folder, packed = scratch / "adapter", scratch / "adapter.zip"
        imports.write(foreign, folder, spec.base_model)
        facts = self._facts(spec, foreign)
        (folder / peft_files.CARD).write_text(card_of_import(facts, foreign.config), encoding="utf-8")
        manifest.write(folder, facts)
        peft_files.pack(folder, packed)
        for effect in members_of(read_sound(packed)):
            self._model.check(effect)
        blob = self._store.put(packed)
        return Inspected(
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            peft_type=facts["peft_type"],
            parameters=foreign.parameters,
            warnings=foreign.warnings,
            details={key: value for key, value in facts.items() if key != "base_model"},
        )

    def _facts(self, spec: InspectSpec, foreign: Foreign) -> dict[str, object]:
        return {
            **self._base,
            "base_model": spec.base_model,
            "origin": "import",
            "peft_type": foreign.config.get("peft_type"),
            "parameters": foreign.parameters,
            "warnings": list(foreign.warnings),
            "imported": {
                "sha256": spec.file_sha256,
                "format": spec.format,
                "base_model_name_or_path": foreign.claimed_base,
                "merged_linear": spec.merged_linear.model_dump(mode="json") if spec.merged_linear else None,
            },
        }
