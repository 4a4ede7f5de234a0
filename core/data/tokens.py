"""Examples to token rows: which ids a base model sees, and which of them it learns. Knows no model and no batch.

Training and serving encode by one path, so a row begins with exactly the ids that serving would send. Three rules make
that hold for every tokeniser: text is cut where an answer begins, as serving cuts it; only the chat template makes
special tokens, a customer's text never does; and what stands between two cuts is encoded in one piece.

A method with virtual tokens adds a template (core/specs/template.py): what stands before a row, and what stands between
its input and its target. Its virtual tokens are negative ids; neither they nor its anchors are ever learned.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from core.base.template import ChatTemplate, Segment, UnusableTemplateError
from core.base.words import Words
from core.data.faults import Fault
from core.specs.dataset import (
    ChatExample,
    ClassificationExample,
    Example,
    PreferenceExample,
    PromptExample,
    TextExample,
)
from core.specs.template import Layout, Template

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
    """One example as a model sees it. learned[t]: token t is to be predicted from those before it; never token 0.

    label: the name of its class, of a classification row; its learned tokens spell it after a blank, and then end.
    """

    line: int
    ids: NDArray[np.int32]  # [T]; a negative one is a virtual token
    learned: NDArray[np.bool_]  # [T]
    label: str | None = None


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerFast,
    *,
    train_on: TrainOn,
    max_tokens: int,
    line: int = 0,
    template: Template | None = None,
) -> TokenRow:
    """One example's row. With a template that parts input and target, only the last learned answer is learned.

    Raises:
        TooLongError: it has more than max_tokens.
        UnusableExampleError: the base model's chat template cannot write it.

    """
    rows = encode_all([(line, example)], tokenizer, train_on=train_on, max_tokens=max_tokens, template=template)
    return next(rows)


def encode_all(
    examples: Iterable[tuple[int, Example]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    train_on: TrainOn,
    max_tokens: int,
    template: Template | None = None,
) -> Iterator[TokenRow]:
    """The rows of (line, example) pairs, in order. Quicker than encode: many are encoded at once. Raises as encode."""
    for row in outcomes(examples, tokenizer, train_on, template):
        if isinstance(row, Fault):
            raise UnusableExampleError(row)
        if len(row.ids) > max_tokens:
            raise TooLongError(row.line, len(row.ids), max_tokens)
        yield row


def encode_prompt(prompt: str | Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What serving sends to be continued: the ids with which the row of a training example with this prompt begins.

    With a template they stand between its two sides, in training as in serving. Raises ValueError where the
    base model's chat template cannot write these messages.
    """
    writer = _writer(tokenizer)
    spans = writer.prompt(prompt) if isinstance(prompt, str) else writer.conversation(prompt, is_question=True)
    return [index for ids in writer.ids([spans])[0] for index in ids]


def encode_answer(answer: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of an answer as they stand behind a prompt's in a training row, without what ends it."""
    return list(_writer(tokenizer).words.encode([answer], is_first=False)[0])


def conversations(examples: Iterable[tuple[int, Example]]) -> Iterator[tuple[int, Example]]:
    """A preference pair as its two conversations, one after the other, the preferred first; others as they are."""
    for line, example in examples:
        meant = example.meanings() if isinstance(example, PreferenceExample) else (example,)
        yield from ((line, one) for one in meant)


@dataclass(frozen=True)
class _Span:
    """A stretch of a row before it is encoded. is_first: encoded as the first text of a document is."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    is_learned: bool = False
    is_first: bool = False


class _Writer:
    """One tokeniser's way from examples to spans and ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        # Not kept whole: the weak table below would then keep it for ever.
        self._eos = tokenizer.eos_token_id
        self.words = Words(tokenizer)
        self._template = ChatTemplate(copy.deepcopy(tokenizer)) if tokenizer.chat_template else None

    def example(self, example: Example, train_on: TrainOn, layout: Layout) -> list[_Span]:
        spans = self._row(example, "last" if layout.after else train_on, is_cut=bool(layout.after))
        answer = next((at for at, span in enumerate(spans) if span.is_learned), len(spans))
        return [_Span(ids=layout.before), *spans[:answer], _Span(ids=layout.after), *spans[answer:]]

    def _row(self, example: Example, train_on: TrainOn, *, is_cut: bool) -> list[_Span]:
        """A plain row. is_cut: it ends with the last answer that is learned, as serving would have it written."""
        match example:
            case ChatExample(messages=turns):
                answers = [index for index, turn in enumerate(turns) if turn.is_learned]
                turns = turns[: answers[-1] + 1] if is_cut else turns
                learned = frozenset(answers if train_on == "assistant" else answers[-1:])
                return self.conversation(turns, is_question=False, learned=learned)
            case PromptExample(prompt=prompt, completion=completion):
                return [*self.prompt(prompt), _Span(completion, is_learned=True), self._end()]
            case ClassificationExample():
                return self._row(example.meaning(), train_on, is_cut=is_cut)
            case TextExample(text=text):
                opening = _Span(ids=self.words.opening)
                return [opening, _Span(text, is_first=True, is_learned=True), self._end()]
            case PreferenceExample():
                raise UnusableTemplateError("a preference pair is two rows: core/data/pairs.py", "preference_pair")

    def _end(self) -> _Span:
        if self._eos is None:
            raise UnusableTemplateError("this base model's tokeniser has no end-of-sequence token to learn", "no_end")
        return _Span(ids=(self._eos,), is_learned=True)

    def prompt(self, prompt: str) -> list[_Span]:
        return [_Span(ids=self.words.opening), _Span(prompt, is_first=True)]

    def conversation(
        self, turns: Sequence[Message], *, is_question: bool, learned: frozenset[int] = frozenset()
    ) -> list[_Span]:
        if (template := self._template) is None:
            raise UnusableTemplateError("this base model has no chat template: use prompt and completion")
        layout = template.layout(tuple(turn.role for turn in turns), is_question=is_question)
        written = template.render([{"role": t.role, "content": t.content} for t in turns], is_question=is_question)
        contents = layout.contents(written, [turn.content for turn in turns])
        return [_span(segment, contents, is_learned=segment.answer in learned) for segment in layout.segments]

    def ids(self, rows: Sequence[Sequence[_Span]]) -> list[list[Sequence[int]]]:
        """The ids of every span of every row, all text encoded at once."""
        encoded: dict[bool, Iterator[Sequence[int]]] = {}
        for is_first in (True, False):
            texts = [s.text for row in rows for s in row if s.ids is None and s.is_first == is_first]
            encoded[is_first] = iter(self.words.encode(texts, is_first=is_first))
        return [[next(encoded[s.is_first]) if s.ids is None else s.ids for s in row] for row in rows]


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerFast, _Writer] = WeakKeyDictionary()


def _writer(tokenizer: PreTrainedTokenizerFast) -> _Writer:
    writer = _KNOWN.get(tokenizer)
    if writer is None:
        writer = _KNOWN[tokenizer] = _Writer(tokenizer)
    return writer


def outcomes(
    examples: Iterable[tuple[int, Example]],
    tokenizer: PreTrainedTokenizerFast,
    train_on: TrainOn,
    template: Template | None,
) -> Iterator[TokenRow | Fault]:
    """Each example's row, whatever its length, or why it cannot be one, in order."""
    writer = _writer(tokenizer)
    layout = template.layout(writer.words.within) if template else Layout((), ())
    some = iter(examples)
    while batch := list(islice(some, _ROWS_AT_ONCE)):
        spans = [_spans(writer, line, example, train_on, layout) for line, example in batch]
        ids = iter(writer.ids([row for row in spans if not isinstance(row, Fault)]))
        for (line, example), row in zip(batch, spans, strict=True):
            label = example.label if isinstance(example, ClassificationExample) else None
            yield row if isinstance(row, Fault) else _row(line, row, next(ids), label)


def _spans(writer: _Writer, line: int, example: Example, train_on: TrainOn, layout: Layout) -> list[_Span] | Fault:
    try:
        return writer.example(example, train_on, layout)
    except UnusableTemplateError as error:
        return Fault(line, "", error.code, str(error))


def _row(line: int, spans: Sequence[_Span], ids: Sequence[Sequence[int]], label: str | None) -> TokenRow | Fault:
    lengths = [len(some) for some in ids]
    learned = np.repeat([span.is_learned for span in spans], lengths)
    learned[:1] = False  # nothing stands before token 0 to predict it from
    if not learned.any():
        return Fault(line, "", "all_masked", "no token of the example would be learned")
    whole = np.fromiter((index for some in ids for index in some), np.int32, sum(lengths))
    return TokenRow(line, whole, learned, label)


def _span(segment: Segment, contents: Sequence[str], *, is_learned: bool) -> _Span:
    if segment.special is not None:
        return _Span(ids=(segment.special,), is_learned=is_learned)
    text = "".join(part if isinstance(part, str) else contents[part] for part in segment.parts)
    return _Span(text, is_learned=is_learned)
