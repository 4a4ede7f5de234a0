"""What one tokeniser makes odd about a dataset that can be trained on: how rows begin, names of special tokens."""

import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerFast

from core.data.faults import Fault
from core.data.json_lines import name, pointer
from core.data.tokens import TokenRow


class WordFaults:
    """Of one tokeniser."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._bos: int | None = tokenizer.bos_token_id
        self._bos_name = tokenizer.bos_token
        self._pad_is_end = tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id
        special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def of_value(self, line: int, value: dict[str, Any]) -> Iterator[Fault]:
        """Names of special tokens in what an example says: here they are text, and mean nothing."""
        for field, text in _texts(value, ""):
            found = self._special.search(text)
            if found is None:
                continue
            if found.start() == 0 and found[0] == self._bos_name:
                message = f"the text begins with {name(found[0])}, which the service writes itself: take it out"
                yield Fault(line, field, "double_bos", message)
            else:
                message = f"the text holds {name(found[0])}, which is read as text, not as a special token"
                yield Fault(line, field, "special_token_text", message)

    def of_row(self, row: TokenRow) -> Iterator[Fault]:
        """What a row's ids tell. That pad and end are one token is said once, of the first row."""
        if self._bos is not None and len(row.ids) > 1 and row.ids[0] == row.ids[1] == self._bos:
            message = "the row begins with two beginning-of-sequence tokens: the base model's chat template writes two"
            yield Fault(row.line, "", "double_bos", message)
        if self._pad_is_end:
            self._pad_is_end = False
            message = "this base model pads with its end-of-sequence token; the end is learned here all the same"
            yield Fault(row.line, "", "pad_is_end", message)


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON value
    match value:
        case str():
            yield field, value
        case dict():
            for key, item in value.items():
                yield from _texts(item, field + pointer(key))
        case list():
            for index, item in enumerate(value):
                yield from _texts(item, f"{field}/{index}")
