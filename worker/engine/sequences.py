"""One request on its way: its tokens, its text, its frames. Knows neither model nor network."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from core.specs.generation import AdapterRef, FinishReason, Frame, FrameError, QueueSpec, SamplingSpec
from core.specs.template import Layout
from worker.engine.scheduler import Row
from worker.engine.text import TextStream


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
    runs_whole: bool = False  # something is to be said of each token of its prompt, so that none may be left out
    wants_logprob: bool = False  # whether its frames say how likely their tokens were
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

    def fate(self) -> FinishReason | None:
        """Whether what is already there ends it: so it may be with a replay."""
        if self.text.is_stopped or (self.n_new and self.ids[-1] in self.stop_ids):
            return "stop"
        return "length" if self.n_new >= self.limit else None

    def take(self, token: int, logprob: float | None = None) -> None:
        """A token has been drawn: tell the reader, and end where it ends. A stop id has no text."""
        self.ids.append(token)
        self.n_new += 1
        text = "" if token in self.stop_ids else self.text.add(token)
        fin = self.fate()
        if fin is not None:
            text += self.text.flush()
        self._send(ids=(token,), text=text, fin=fin, logprob=logprob)

    def finish(self, fin: FinishReason) -> None:
        """Ends it without another token."""
        self._send(text=self.text.flush(), fin=fin)

    def fail(self, error: FrameError) -> None:
        """Ends it with an error of its own."""
        self._send(error=error)

    def _send(
        self,
        *,
        ids: tuple[int, ...] = (),
        text: str = "",
        fin: FinishReason | None = None,
        error: FrameError | None = None,
        logprob: float | None = None,
    ) -> None:
        prompt_ids = self.prompt_ids if self.seq == 0 else None
        self.is_over, self.is_whole = fin is not None or error is not None, fin is not None
        frame = Frame(seq=self.seq, ids=ids, text=text, fin=fin, prompt_ids=prompt_ids, error=error, logprob=logprob)
        self.seq += 1
        self.emit(frame)
