"""How a base model's own chat template writes a conversation: what is the template's, what the turns', what an answer.

Knows the shape of a conversation (its roles), never its contents, and encodes no text.

The template is a Jinja program that only writes text. So it is run on marks in place of contents, and the marks are
found again. A model is asked for an answer by the template's generation prompt, hence an answer begins where that ends,
and it ends with the special token that closes the turn, the one that makes serving stop.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

_MARK = re.compile("\ue000([0-9]+)\ue001")
_LAYOUTS_KEPT = 256


class UnusableTemplateError(ValueError):
    """A conversation that this base model's chat template cannot write, or not so that an answer can be found in it.

    code: chat_template, or hidden_answer where no mask could be made, or no_end where nothing would say stop.
    """

    def __init__(self, message: str, code: str = "chat_template") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Segment:
    """Text that is encoded in one piece, or one special token. answer: the turn whose answer it belongs to, if any."""

    parts: tuple[str | int, ...]  # the template's text, or the index of a turn whose content stands here
    special: int | None  # the id of a special token; parts then holds its text
    answer: int | None


@dataclass(frozen=True)
class Layout:
    """How every conversation with the same roles is written."""

    parts: tuple[str | int, ...]  # the whole text: the template's, or the index of a turn whose content stands here
    segments: tuple[Segment, ...]  # the same, cut where it is to be encoded apart

    def contents(self, written: str, said: Sequence[str]) -> list[str]:
        """What stands for each turn in a written conversation: what was said, or that with its outer blanks trimmed.

        Raises:
            UnusableTemplateError: something else stands there, so the template changes words.

        """
        at = 0
        found: list[str] = []
        for part in self.parts:
            texts = (part,) if isinstance(part, str) else _as_written(said[part])
            text = next((text for text in texts if written.startswith(text, at)), None)
            if text is None:
                break
            at += len(text)
            found += [text] if isinstance(part, int) else []
        if at != len(written) or len(found) != len(said):
            raise UnusableTemplateError("the base model's chat template changes the words of this conversation")
        return found


class ChatTemplate:
    """The chat template of one tokeniser."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise UnusableTemplateError("this base model has no chat template: use prompt and completion")
        self._tokenizer = tokenizer
        self._special = {
            str(token): (index, token) for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        longest_first = sorted(self._special, key=len, reverse=True)
        self._any_special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.layout = lru_cache(maxsize=_LAYOUTS_KEPT)(self._layout)

    def render(self, turns: list[dict[str, str]], *, is_question: bool) -> str:
        """The text of a conversation; a question ends with the generation prompt.

        Raises:
            UnusableTemplateError: the template refuses it.

        """
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_question)
        except (TemplateError, TypeError, ValueError, IndexError) as error:
            raise UnusableTemplateError(f"the base model's chat template refuses this conversation: {error}") from error
        assert isinstance(text, str)
        return text

    def end_of_turn(self) -> int:
        """The id of the special token that closes an answer."""
        segments = self.layout(("user", "assistant"), is_question=False).segments
        return next(part.special for part in reversed(segments) if part.answer is not None and part.special is not None)

    def _layout(self, roles: tuple[str, ...], *, is_question: bool) -> Layout:
        text = self._marked(roles, is_question=is_question)
        found = [int(mark[1]) for mark in _MARK.finditer(text)]
        if found != list(range(len(roles))):
            message = "the base model's chat template does not write every turn once and in order"
            raise UnusableTemplateError(message, "hidden_answer")
        answers = [self._answer(text, roles, i, is_question) for i, role in enumerate(roles) if role == "assistant"]
        cuts = sorted({0, len(text), *(edge for _, *edges in answers for edge in edges)})
        segments: list[Segment] = []
        for start, end in pairwise(cuts):
            owner = next((turn for turn, first, last in answers if first <= start < last), None)
            segments += self._segments(text[start:end], owner)
        return Layout(_parts(text), tuple(segments))

    def _marked(self, roles: tuple[str, ...], *, is_question: bool) -> str:
        turns = [{"role": role, "content": f"\ue000{index}\ue001"} for index, role in enumerate(roles)]
        return self.render(turns, is_question=is_question)

    def _answer(self, text: str, roles: tuple[str, ...], turn: int, is_question: bool) -> tuple[int, int, int]:  # noqa: FBT001
        """Of an assistant's turn: its index, and where its answer begins and ends in the marked text."""
        mark = f"\ue000{turn}\ue001"
        content = text.index(mark)
        begin = self._begin(text, roles[:turn])
        if begin is None:
            if turn == len(roles) - 1 and not is_question:
                raise UnusableTemplateError(
                    "the base model's chat template asks for an answer otherwise than it writes one", "hidden_answer"
                )
            begin = content
        closing = self._any_special.search(text, content + len(mark))
        if closing is None or text[content + len(mark) : closing.start()].strip():
            raise UnusableTemplateError(
                "the base model's chat template closes an answer with no special token", "no_end"
            )
        return turn, begin, closing.end()

    def _begin(self, text: str, before: tuple[str, ...]) -> int | None:
        """Where the generation prompt after these turns ends, or None where the text does not go on from it.

        Some templates write an answer of the past otherwise than the one they ask for.
        """
        try:
            question = self._marked(before, is_question=True)
        except UnusableTemplateError:
            return None
        return len(question) if text.startswith(question) else None

    def _segments(self, text: str, answer: int | None) -> list[Segment]:
        segments: list[Segment] = []
        at = 0
        for found in self._any_special.finditer(text):
            index, token = self._special[found[0]]
            before = text[at : found.start()]
            segments += _text(before.rstrip() if token.lstrip else before, answer)
            segments.append(Segment((found[0],), index, answer))
            at = found.end()
            if token.rstrip:
                at += len(text[at:]) - len(text[at:].lstrip())
        return segments + _text(text[at:], answer)


def _text(marked: str, answer: int | None) -> list[Segment]:
    return [Segment(_parts(marked), None, answer)] if marked else []


def _parts(marked: str) -> tuple[str | int, ...]:
    pieces = _MARK.split(marked)  # text, turn, text, turn, …, text
    return tuple(int(piece) if place % 2 else piece for place, piece in enumerate(pieces) if place % 2 or piece)


def _as_written(said: str) -> tuple[str, ...]:
    return said, said.strip(), said.lstrip(), said.rstrip()
