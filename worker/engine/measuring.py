"""Datasets held against this engine's base model: how long their rows are, and what the first of them look like."""

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.base.load import OpenBase
from core.base.shape import shape_of
from core.blobs import BlobStore, MissingBlob
from core.data.amounts import measure
from core.data.batches import largest
from core.data.faults import FaultyLineError
from core.data.preview import preview
from core.specs.generation import MeasureSpec
from core.specs.preview import Preview, PreviewSpec
from core.speed import with_speed
from worker.engine.intake import Refused


class Measurer:
    """Answers POST /measure and /preview, one at a time, with a tokeniser of its own."""

    def __init__(self, store: BlobStore, cache_dir: Path, base: OpenBase) -> None:
        self._store, self._cache_dir = store, cache_dir
        self._context = base.facts.context
        self._shape = with_speed(shape_of(base.model, base.facts), base.device, base.dtype)
        self._tokenizer = copy.deepcopy(base.tokenizer)

    def measure(self, spec: MeasureSpec) -> dict[str, object]:
        """As MeasureSpec says. Raises Refused."""
        with self._folder() as folder:
            try:
                path = self._fetched(spec.file_sha256, folder)
                found = measure(
                    path,
                    self._tokenizer,
                    spec.max_tokens,
                    train_on=spec.train_on,
                    template=spec.template,
                    first=spec.first,
                )
            except FaultyLineError as error:
                raise Refused(400, "invalid_file", str(error), "file_sha256") from error
        schedule = spec.schedule
        met = None if schedule is None else largest(found.lengths, found.learned, schedule)
        return {
            "tokens": found.tokens,
            "learned_tokens": found.learned_tokens,
            "n_examples": found.n_examples,
            "context": self._context,
            "too_long": [{"line": line, "tokens": tokens} for line, tokens in found.too_long],
            "shape": self._shape.model_dump(mode="json"),
            "largest": None if met is None else met.model_dump(mode="json"),
            **({} if spec.first is None else {"lengths": found.lengths.tolist()}),
        }

    def preview(self, spec: PreviewSpec) -> Preview:
        """As PreviewSpec says. Raises Refused."""
        if (spec.file_sha256 is None) == (spec.rows is None):
            raise Refused(400, "invalid_request", "give one of file_sha256 and rows", "rows")
        with self._folder() as folder:
            if spec.file_sha256 is not None:
                path = self._fetched(spec.file_sha256, folder)
            else:
                path = folder / "rows"
                path.write_text("".join(json.dumps(row) + "\n" for row in spec.rows or ()), encoding="utf-8")
            return preview(path, self._tokenizer, spec, context=self._context)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache_dir, prefix="measure-") as folder:
            yield Path(folder)

    def _fetched(self, sha256: str, folder: Path) -> Path:
        try:
            return self._store.fetch(sha256, folder / "file")
        except MissingBlob as error:
            raise Refused(400, "file_not_found", "the file is not in the store", "file_sha256") from error
