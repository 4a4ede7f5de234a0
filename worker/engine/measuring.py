"""How long a dataset's examples are for this engine's base model: the answer to POST /measure."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from core.base.load import OpenBase
from core.blobs import BlobStore, MissingBlob
from core.data.formats import FaultyLineError
from core.data.tokens import measure
from core.settings import Settings
from core.specs.generation import MeasureSpec
from worker.engine.intake import Refused


def measurer(settings: Settings, store: BlobStore, base: OpenBase) -> Callable[[MeasureSpec], dict[str, object]]:
    """Answers with a tokeniser of its own, so in a thread of its own."""
    tokenizer: PreTrainedTokenizerFast = copy.deepcopy(base.tokenizer)

    def answer(spec: MeasureSpec) -> dict[str, object]:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.cache_dir, prefix="measure-") as folder:
            try:
                path = store.fetch(spec.file_sha256, Path(folder) / "file")
                found = measure(path, tokenizer, spec.max_tokens, template=spec.template)
            except MissingBlob as error:
                raise Refused(400, "file_not_found", "the file is not in the store", "file_sha256") from error
            except FaultyLineError as error:
                raise Refused(400, "invalid_file", str(error), "file_sha256") from error
        return {
            "tokens": found.tokens,
            "learned_tokens": found.learned_tokens,
            "n_examples": found.n_examples,
            "context": base.facts.context,
            "too_long": [{"line": line, "tokens": tokens} for line, tokens in found.too_long],
        }

    return answer
