"""One request on its way: its tokens, its text, its frames. Knows neither model nor network."""

from collections.abc import Callable
from dataclasses import dataclass, field

from core.specs.generation import AdapterRef, FinishReason, Frame, FrameError, SamplingSpec
from worker.engine.text import TextStream


@dataclass(slots=True, eq=False)
class Sequence:
    """Lives from acceptance to its last frame. Only the step loop changes it."""

    key: int
    request_id: str
    prompt_ids: tuple[int, ...]  # as asked; of a replay, with what was emitted before
    offset: int  # how many of prompt_ids were drawn earlier: token t is drawn with (seed, t)
    sampling: SamplingSpec
    adapter: AdapterRef | None
    stop_ids: frozenset[int]
    text: TextStream
    limit: int  # new tokens in all, earlier ones included
    emit: Callable[[Frame], None]  # never blocks
    accepted_at: float = 0.0  # of the engine's clock
    new_ids: list[int] = field(default_factory=list)
    slot: int | None = None  # of the cache, while it runs
    seq: int = 0  # of the next frame
    is_over: bool = False

    @property
    def n_new(self) -> int:
        """Tokens drawn so far, by whomever."""
        return self.offset + len(self.new_ids)

    def fate(self) -> FinishReason | None:
        """Whether what is already there ends it: so it may be with a replay."""
        last = self.prompt_ids[-1] if self.offset and not self.new_ids else None
        if self.text.is_stopped or last in self.stop_ids:
            return "stop"
        return "length" if self.n_new >= self.limit else None

    def take(self, token: int) -> None:
        """A token has been drawn: tell the reader, and end where it ends."""
        self.new_ids.append(token)
        if token in self.stop_ids:
            self._send(ids=(token,), text=self.text.flush(), fin="stop")
            return
        text = self.text.add(token)
        fin = self.fate()
        if fin == "length":
            text += self.text.flush()
        self._send(ids=(token,), text=text, fin=fin)

    def finish(self, fin: FinishReason) -> None:
        """Ends it without another token."""
        self._send(ids=(), text=self.text.flush(), fin=fin)

    def fail(self, error: FrameError) -> None:
        """Ends it with an error of its own."""
        if not self.is_over:
            self._send(ids=(), text="", fin=None, error=error)

    def _send(
        self, *, ids: tuple[int, ...], text: str, fin: FinishReason | None, error: FrameError | None = None
    ) -> None:
        self.is_over = fin is not None or error is not None
        prompt_ids = self.prompt_ids if self.seq == 0 else None
        frame = Frame(seq=self.seq, ids=ids, text=text, fin=fin, prompt_ids=prompt_ids, error=error)
        self.seq += 1
        self.emit(frame)
