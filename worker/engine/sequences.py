"""One request on its way: its tokens, its text, its frames. Knows neither model nor network."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from core.specs.generation import (
    AdapterRef,
    Choice,
    FinishReason,
    Frame,
    FrameError,
    Likelihood,
    QueueSpec,
    SamplingSpec,
)
from core.specs.template import Layout
from worker.engine.lexicon import Guide, Lexicon
from worker.engine.likelihood import Told
from worker.engine.reading import Reading
from worker.engine.scheduler import Row
from worker.engine.shaping import Draw
from worker.engine.text import TextStream


class Said(TypedDict, total=False):
    """The fields of a frame that say something of the row."""

    ids: tuple[int, ...]
    text: str
    logprob: float | None
    likelihoods: tuple[Likelihood, ...] | None
    embedding: str | None


@dataclass(slots=True, eq=False)
class Sequence:
    """Lives from acceptance to its last frame. Once submitted, only the step loop changes it."""

    key: int
    prompt_ids: tuple[int, ...]  # as asked; of a replay, with what was emitted before
    offset: int  # how many of prompt_ids were drawn earlier: token t is drawn with (seed, t)
    sampling: SamplingSpec
    adapter: AdapterRef | None
    stop_ids: frozenset[int]
    text: TextStream
    limit: int  # new tokens in all, earlier ones included
    emit: Callable[[Frame], None]  # never blocks
    queue: QueueSpec = field(default_factory=QueueSpec)
    wants_logprob: bool = False  # whether its frames say how likely their tokens were
    top_logprobs: int | None = None  # whether they say how likely the model held them, and so many others
    lexicon: Lexicon | None = None  # of a row of which likelihoods are told
    guide: Guide | None = None  # of a row whose answer is held to a schema
    reading: Reading | None = None  # of a row that is only read: nothing is drawn, it ends with what is found
    accepted_at: float = 0.0  # of the engine's clock
    ids: list[int] = field(default_factory=list)  # all that runs: prompt in its template, drawn ones
    n_new: int = 0  # tokens drawn so far, earlier ones included
    seq: int = 0  # of the next frame
    is_over: bool = False
    is_whole: bool = False  # it ended as an answer does, not by an error

    def __post_init__(self) -> None:
        self.ids = list(self.prompt_ids)
        self.n_new = self.offset

    @property
    def digest(self) -> str | None:
        """Of its adapter's content."""
        return self.adapter.sha256 if self.adapter else None

    @property
    def may_skip(self) -> int:
        """How many of its first tokens need not run where others ran them.

        All but the last; of a row that is read, those before the token that foretells the first that is wanted.
        """
        return len(self.ids) - 1 if self.reading is None else max(0, self.reading.of.start - 1)

    @property
    def goes_on(self) -> bool:
        """Whether it may still be there when the next token has been drawn."""
        return self.reading is None and self.n_new + 1 < self.limit

    def row(self, now: float) -> Row:
        """What the scheduler is to know of it, accepted now."""
        queue = self.queue
        return Row(
            self.key,
            len(self.ids),
            self.digest,
            tenant=queue.tenant,
            weight=queue.weight,
            priority=queue.priority,
            deadline=math.inf if queue.deadline_s is None else now + queue.deadline_s,
        )

    def lay_out(self, layout: Layout, spare: int) -> None:
        """Put the prompt into its adapter's template; what was drawn earlier stands behind that.

        spare: how many tokens then still fit.
        """
        asked = len(self.prompt_ids) - self.offset
        self.ids = [*layout.around(self.prompt_ids[:asked]), *self.prompt_ids[asked:]]
        self.limit = min(self.limit, self.offset + spare)
        if self.reading is not None:
            before = len(self.ids) - len(layout.after) - len(self.prompt_ids)
            answer = range(len(self.ids) - self.offset, len(self.ids))
            self.reading.of = answer if self.offset else range(before, before + asked)

    def draw(self) -> Draw:
        """How its next token is to be chosen. Raises SchemaError."""
        first = len(self.ids) - self.n_new
        allowed = self.guide.allowed() if self.guide is not None else None
        return Draw(self.sampling, self.n_new, self.ids[:first], self.ids[first:], allowed)

    def fate(self) -> FinishReason | None:
        """Whether what is already there ends it: so it may be with a replay."""
        if self.reading is not None:
            return None
        if self.text.is_stopped or (self.n_new and self.ids[-1] in self.stop_ids):
            return "stop"
        return "length" if self.n_new >= self.limit else None

    def take(self, token: int, logprob: float | None = None, told: Told | None = None) -> None:
        """A token has been drawn: tell the reader, and end where it ends. A stop id has no text.

        Raises:
            SchemaError: the schema has become too complex to be followed; the row can only fail.

        """
        self.ids.append(token)
        self.n_new += 1
        is_end = token in self.stop_ids
        if self.guide is not None and not is_end:
            self.guide.take(token)
        text = "" if is_end else self.text.add(token)
        fin = self.fate()
        if fin is not None:
            text += self.text.flush()
        likelihoods = None if told is None else () if is_end else (self._likelihood(told),)
        self._send(ids=(token,), text=text, fin=fin, logprob=logprob, likelihoods=likelihoods)

    def finish(self, fin: FinishReason) -> None:
        """Ends it without another token."""
        self._send(text=self.text.flush(), fin=fin)

    def found(self) -> None:
        """Ends a row that was only read, with what was found."""
        assert self.reading is not None
        told = self.reading.told
        likelihoods = None if told is None else tuple(self._likelihood(t) for t in told)
        self._send(fin="stop", likelihoods=likelihoods, embedding=self.reading.embedding())

    def _likelihood(self, told: Told) -> Likelihood:
        words = self.lexicon
        assert words is not None, "intake gives one to each row that is to be told of"
        top = tuple(Choice(id=i, bytes=tuple(words.name_of(i)), logprob=logprob) for i, logprob in told.top)
        return Likelihood(id=told.token, bytes=tuple(words.bytes_of(told.token)), logprob=told.logprob, top=top)

    def fail(self, error: FrameError) -> None:
        """Ends it with an error of its own."""
        self._send(error=error)

    def _send(self, *, fin: FinishReason | None = None, error: FrameError | None = None, **said: Unpack[Said]) -> None:
        prompt_ids = self.prompt_ids if self.seq == 0 else None
        self.is_over, self.is_whole = fin is not None or error is not None, fin is not None
        frame = Frame(seq=self.seq, fin=fin, prompt_ids=prompt_ids, error=error, **said)
        self.seq += 1
        self.emit(frame)
