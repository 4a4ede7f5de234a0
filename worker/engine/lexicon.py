"""A base model's tokens as bytes, and which of them may come next where an answer has to be JSON that fits a schema.

Everything is a function of the schema and the ids drawn so far: a replay that is fed the ids another engine emitted may
draw what that one might have drawn. Knows no model and no torch; the grammar is llguidance's.
"""

import json
from collections.abc import Iterable

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from worker.engine.schema_faults import OPTIONS, find_fault

# Between two parts of the JSON: a blank, or a line break and an indentation, so that no answer is blanks for ever.
BLANKS = {"whitespace_pattern": r"[ ]{0,1}|\n[ ]{0,16}", "lenient": False}


class SchemaError(ValueError):
    """A schema that no answer can be held to. path: of the part at fault, from the schema's top."""

    def __init__(self, message: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


class Guide:
    """One row's way through its schema."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """The tokens that may come next, [V]; those that end an answer among them once it is whole.

        Raises:
            SchemaError: the schema has become too complex to be followed.

        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise SchemaError(_first_line(self._matcher.get_error()))
        return np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(np.bool_)

    def take(self, token: int) -> None:
        """A token has been drawn, one that was allowed and does not end the answer. Raises SchemaError otherwise."""
        if not self._matcher.consume_token(token):
            raise SchemaError(_first_line(self._matcher.get_error()))


class Lexicon:
    """One a base model. Safe to use from several threads; each Guide belongs to one at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, vocabulary: int, stop_ids: Iterable[int]) -> None:
        """vocabulary: ids that the model gives logits. stop_ids: those that end an answer. Takes a second.

        Raises:
            ValueError: the bytes of this tokeniser's tokens cannot be told.

        """
        self._vocabulary = vocabulary
        self._tokens: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(stop_ids) or None)

    def bytes_of(self, token: int) -> bytes:
        """What a token writes into the text: nothing, if it is a special one."""
        return b"" if self._tokens.is_special_token(token) else self.name_of(token)

    def name_of(self, token: int) -> bytes:
        """What a token writes; of a special one, its name."""
        return bytes(self._tokens.decode_bytes([token]))

    def guide(self, schema: str) -> Guide:
        """The way through a JSON Schema, from its beginning. May take a good part of a second for a large one.

        Raises:
            SchemaError: it is no schema, asks for what cannot be held, or no value fits it.

        """
        described = _described(schema)
        try:
            fault, grammar = find_fault(described, self._fault_of), self._grammar(described)
        except RecursionError:
            raise SchemaError("it is nested too deep") from None
        if fault is not None:
            raise SchemaError(fault.message, fault.path)
        guide = Guide(LLMatcher(self._tokens, grammar, log_level=0), self._vocabulary)
        if not self._begins(guide):
            raise SchemaError("no JSON value fits it, or none that ends")
        return guide

    def _begins(self, guide: Guide) -> bool:
        """Whether an answer may begin at all."""
        try:
            allowed = guide.allowed()
        except SchemaError:
            return False
        allowed[self._tokens.eos_tokens] = False
        return bool(allowed.any())

    def _fault_of(self, schema: dict[str, object]) -> str | None:
        """Why a schema cannot be held to, as the grammar's compiler says it."""
        is_faulty, messages = LLMatcher.validate_grammar_with_warnings(self._grammar(schema), self._tokens)
        return _first_line(messages[0]) if is_faulty else None

    def _grammar(self, schema: dict[str, object]) -> str:
        return LLMatcher.grammar_from_json_schema(json.dumps({**schema, OPTIONS: BLANKS}))


def _described(schema: str) -> dict[str, object]:
    try:
        described = json.loads(schema)
    except (ValueError, RecursionError):
        raise SchemaError("it is not JSON") from None
    if not isinstance(described, dict):
        raise SchemaError('a schema is a JSON object, such as {"type": "object"}')
    return described


def _first_line(message: str) -> str:
    """A library's words, short."""
    line = next((line.strip() for line in message.splitlines() if line.strip()), "it cannot be held to")
    return line.partition(". Enable")[0][:200]  # its options are not a customer's to set
