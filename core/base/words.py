"""One tokeniser's way with text: what people write becomes ids of text, never of special tokens. Knows no example."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


class Words:
    """Copies what it needs of a tokeniser and leaves it as it is. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._first = _plain(tokenizer.backend_tokenizer, lambda described: described)
        self._inner = _plain(tokenizer.backend_tokenizer, _without_prefix)
        special = {
            index: str(token)
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and index != tokenizer.unk_token_id
        }
        self._special_ids = frozenset(special)
        self._special_names = re.compile("|".join(map(re.escape, special.values())) or r"(?!)")
        # What the tokeniser puts before a document: a beginning-of-sequence token, or nothing.
        marked = tokenizer.encode("a", add_special_tokens=True)
        bare = tokenizer.encode("a", add_special_tokens=False)
        self.opening = tuple(marked[: next(i for i in range(len(marked)) if marked[i : i + len(bare)] == bare)])

    def encode(self, texts: Sequence[str], *, is_first: bool) -> list[list[int]]:
        """The ids of each text: as the first of a document, or as one that stands within."""
        backend = self._first if is_first else self._inner
        found = [encoded.ids for encoded in backend.encode_batch_fast(texts, add_special_tokens=False)]
        return [
            ids if self._special_ids.isdisjoint(ids) else self._spelled(text, is_first=is_first)
            for text, ids in zip(texts, found, strict=True)
        ]

    def within(self, text: str) -> list[int]:
        """The ids of one text that stands within a row, as the anchors of a template do."""
        return self.encode([text], is_first=False)[0]

    def _spelled(self, text: str, *, is_first: bool) -> list[int]:
        """A text with each special token's name cut after its first letter.

        Some vocabularies list special tokens among their pieces, and find them in any text.
        """
        cuts = [0, *(name.start() + 1 for name in self._special_names.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        opening = (self._first if is_first else self._inner).encode(pieces[0], add_special_tokens=False).ids
        rest = self._inner.encode_batch_fast(pieces[1:], add_special_tokens=False)
        return [*opening, *(index for piece in rest for index in piece.ids)]


def _plain(backend: Tokenizer, change: Callable[[Any], Any]) -> Tokenizer:
    """A copy of a tokeniser to which special tokens in a text are text like any other."""
    plain = Tokenizer.from_str(json.dumps(change(json.loads(backend.to_str()))))
    plain.encode_special_tokens = True
    plain.no_padding()
    plain.no_truncation()
    return plain


def _without_prefix(part: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A tokeniser's description, less the blank that SentencePiece tokenisers put before a document's first word."""
    match part:
        case {"type": "Metaspace"}:
            return part | {"prepend_scheme": "never"}
        case {"type": "Prepend"}:
            return {"type": "Sequence", "normalizers": []}
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return part | {"add_prefix_space": False}
        case dict():
            return {key: value if key == "model" else _without_prefix(value) for key, value in part.items()}
        case list():
            return [_without_prefix(value) for value in part]
    return part
