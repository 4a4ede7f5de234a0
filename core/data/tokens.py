"""Examples to token rows: which ids a base model sees, and which of them it learns. Knows no model and no batch.

Training and serving encode by one path, so a row begins with exactly the ids that serving would send. Three rules make
that hold for every tokeniser: text is cut where an answer begins, as serving cuts it; only the template makes special
tokens, a customer's text never does; and what stands between two cuts is encoded in one piece.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from core.base.template import ChatTemplate, Segment, UnusableTemplateError
from core.data.formats import MAX_FAULTS_KEPT, Fault, read
from core.specs.dataset import ChatExample, Example, PromptExample

TrainOn = Literal["assistant", "last"]
_ROWS_AT_ONCE = 128


class Message(Protocol):
    """A turn, of training or of serving."""

    @property
    def role(self) -> str:
        """system, user or assistant."""

    @property
    def content(self) -> str:
        """What was said."""


class UnusableExampleError(ValueError):
    """An example that cannot become a row for this base model."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"line {fault.line}: {fault.message}")
        self.fault = fault


class TooLongError(UnusableExampleError):
    """A row of more tokens than allowed. Rows are never cut short: the end, and what is learned, would be lost."""

    def __init__(self, line: int, tokens: int, max_tokens: int) -> None:
        super().__init__(
            Fault(line, "", "too_long", f"the example has {tokens} tokens; at most {max_tokens} are allowed")
        )
        self.line, self.tokens, self.max_tokens = line, tokens, max_tokens


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One example as a model sees it. learned[t]: token t is to be predicted from those before it; never token 0."""

    line: int
    ids: NDArray[np.int32]  # [T]
    learned: NDArray[np.bool_]  # [T]


@dataclass(frozen=True)
class Measure:
    """What a whole file is to a base model. faults: other reasons why a line cannot be used, the first 100."""

    tokens: int
    learned_tokens: int
    n_examples: int
    too_long: tuple[tuple[int, int], ...]  # (line, tokens), the first 100
    n_too_long: int
    faults: tuple[Fault, ...]


def encode(
    example: Example, tokenizer: PreTrainedTokenizerFast, *, train_on: TrainOn, max_tokens: int, line: int = 0
) -> TokenRow:
    """One example's row.

    Raises:
        TooLongError: it has more than max_tokens.
        UnusableExampleError: the base model's chat template cannot write it.

    """
    return next(encode_all([(line, example)], tokenizer, train_on=train_on, max_tokens=max_tokens))


def encode_all(
    examples: Iterable[tuple[int, Example]], tokenizer: PreTrainedTokenizerFast, *, train_on: TrainOn, max_tokens: int
) -> Iterator[TokenRow]:
    """The rows of (line, example) pairs, in order. Quicker than encode: many are encoded at once. Raises as encode."""
    for row in _outcomes(examples, tokenizer, train_on):
        if isinstance(row, Fault):
            raise UnusableExampleError(row)
        if len(row.ids) > max_tokens:
            raise TooLongError(row.line, len(row.ids), max_tokens)
        yield row


def encode_prompt(prompt: str | Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What serving sends to be continued: the ids with which the row of a training example with this prompt begins.

    Raises:
        ValueError: the base model's chat template cannot write these messages.

    """
    words = _words(tokenizer)
    spans = words.prompt(prompt) if isinstance(prompt, str) else words.conversation(prompt, is_question=True)
    return [index for ids in words.ids([spans])[0] for index in ids]


def measure(
    path: Path, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None, *, train_on: TrainOn = "assistant"
) -> Measure:
    """Reads a checked file and counts. Holds a few rows at a time; max_tokens None finds nothing too long.

    Raises:
        FaultyLineError: the file would not pass formats.check.

    """
    tokens = learned = count = n_too_long = 0
    too_long: list[tuple[int, int]] = []
    faults: list[Fault] = []
    for row in _outcomes(read(path), tokenizer, train_on):
        count += 1
        if isinstance(row, Fault):
            faults += [row] if len(faults) < MAX_FAULTS_KEPT else []
            continue
        tokens += len(row.ids)
        learned += int(row.learned.sum())
        if max_tokens is not None and len(row.ids) > max_tokens:
            n_too_long += 1
            too_long += [(row.line, len(row.ids))] if len(too_long) < MAX_FAULTS_KEPT else []
    return Measure(tokens, learned, count, tuple(too_long), n_too_long, tuple(faults))


@dataclass(frozen=True)
class _Span:
    """A stretch of a row before it is encoded. adds_prefix: as the first text of a document is encoded."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    is_learned: bool = False
    adds_prefix: bool = False


class _Words:
    """One tokeniser's way with text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._first = _plain(tokenizer.backend_tokenizer, lambda whole: whole)
        self._inner = _plain(tokenizer.backend_tokenizer, _without_prefix)
        self._template: ChatTemplate | None = None
        # What the tokeniser puts before a document: a beginning-of-sequence token, or nothing.
        marked = tokenizer.encode("a", add_special_tokens=True)
        bare = tokenizer.encode("a", add_special_tokens=False)
        self._opening = tuple(marked[: next(i for i in range(len(marked)) if marked[i : i + len(bare)] == bare)])

    def example(self, example: Example, train_on: TrainOn) -> list[_Span]:
        match example:
            case ChatExample(messages=turns):
                answers = [index for index, turn in enumerate(turns) if turn.is_learned]
                learned = frozenset(answers if train_on == "assistant" else answers[-1:])
                return self.conversation(turns, is_question=False, learned=learned)
            case PromptExample(prompt=prompt, completion=completion):
                end = self._tokenizer.eos_token_id
                if end is None:
                    raise UnusableTemplateError("this base model's tokeniser has no end-of-sequence token to learn")
                return [*self.prompt(prompt), _Span(completion, is_learned=True), _Span(ids=(end,), is_learned=True)]

    def prompt(self, prompt: str) -> list[_Span]:
        return [_Span(ids=self._opening), _Span(prompt, adds_prefix=True)]

    def conversation(
        self, turns: Sequence[Message], *, is_question: bool, learned: frozenset[int] = frozenset()
    ) -> list[_Span]:
        self._template = template = self._template or ChatTemplate(self._tokenizer)
        layout = template.layout(tuple(turn.role for turn in turns), is_question=is_question)
        written = template.render([{"role": t.role, "content": t.content} for t in turns], is_question=is_question)
        contents = layout.contents(written, [turn.content for turn in turns])
        return [_span(segment, contents, is_learned=segment.answer in learned) for segment in layout.segments]

    def ids(self, rows: Sequence[Sequence[_Span]]) -> list[list[Sequence[int]]]:
        """The ids of every span of every row, all text encoded at once."""
        encoded = {
            adds_prefix: iter(
                backend.encode_batch_fast(
                    [span.text for row in rows for span in row if span.ids is None and span.adds_prefix == adds_prefix],
                    add_special_tokens=False,
                )
            )
            for adds_prefix, backend in ((True, self._first), (False, self._inner))
        }
        return [[next(encoded[span.adds_prefix]).ids if span.ids is None else span.ids for span in row] for row in rows]


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerFast, _Words] = WeakKeyDictionary()


def _words(tokenizer: PreTrainedTokenizerFast) -> _Words:
    words = _KNOWN.get(tokenizer)
    if words is None:
        words = _KNOWN[tokenizer] = _Words(tokenizer)
    return words


def _outcomes(
    examples: Iterable[tuple[int, Example]], tokenizer: PreTrainedTokenizerFast, train_on: TrainOn
) -> Iterator[TokenRow | Fault]:
    """Each example's row, or why it cannot be one, in order."""
    words = _words(tokenizer)
    some = iter(examples)
    while batch := list(islice(some, _ROWS_AT_ONCE)):
        spans = [_spans(words, line, example, train_on) for line, example in batch]
        ids = iter(words.ids([row for row in spans if not isinstance(row, Fault)]))
        for (line, _), row in zip(batch, spans, strict=True):
            yield row if isinstance(row, Fault) else _row(line, row, next(ids))


def _spans(words: _Words, line: int, example: Example, train_on: TrainOn) -> list[_Span] | Fault:
    try:
        return words.example(example, train_on)
    except UnusableTemplateError as error:
        return Fault(line, "", "chat_template", str(error))


def _row(line: int, spans: Sequence[_Span], ids: Sequence[Sequence[int]]) -> TokenRow:
    lengths = [len(some) for some in ids]
    learned = np.repeat([span.is_learned for span in spans], lengths)
    learned[:1] = False  # nothing stands before token 0 to predict it from
    return TokenRow(line, np.fromiter((index for some in ids for index in some), np.int32, sum(lengths)), learned)


def _span(segment: Segment, contents: Sequence[str], *, is_learned: bool) -> _Span:
    if segment.special is not None:
        return _Span(ids=(segment.special,), is_learned=is_learned)
    text = "".join(part if isinstance(part, str) else contents[part] for part in segment.parts)
    return _Span(text, is_learned=is_learned)


def _plain(backend: Tokenizer, change: Callable[[Any], Any]) -> Tokenizer:
    """A copy of a tokeniser to which special tokens in a text are text like any other."""
    plain = Tokenizer.from_str(json.dumps(change(json.loads(backend.to_str()))))
    plain.encode_special_tokens = True
    plain.no_padding()
    plain.no_truncation()
    return plain


def _without_prefix(part: Any) -> Any:  # noqa: ANN401
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
