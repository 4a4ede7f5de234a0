"""Which rows run next. Pure arithmetic over waiting and running rows: no torch, no clock, no database.

Every step, rows that decode come first, each with its one token, so that a long prompt never stalls a neighbour. What
is left of the token budget goes to prompts, oldest first, in chunks. A row waits until a place is free and its adapter
is resident; rows behind it whose adapters are resident may pass it. Only when an adapter finds no memory does everybody
behind it wait, so that the rows that hold the memory can drain.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum


class Overloaded(Exception):
    """As many rows wait as may."""


class Readiness(Enum):
    """Of an adapter, as the scheduler sees it."""

    READY = "ready"
    LOADING = "loading"
    BLOCKED = "blocked"  # loaded, but there is no memory until running rows let go of theirs


@dataclass(slots=True)
class Row:
    """What the scheduler knows of a sequence. length: tokens known, prompt and drawn; cached: those already run."""

    key: int
    length: int
    adapter: str | None = None
    cached: int = 0

    @property
    def pending(self) -> int:
        """Tokens still to run; 1 while decoding."""
        return self.length - self.cached


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a row, to run in this step. After the last known token one more is drawn."""

    key: int
    start: int
    count: int
    is_last: bool


class Scheduler:
    """Waiting rows in order of arrival, and at most `rows` running ones."""

    def __init__(self, *, rows: int, token_budget: int, max_waiting: int) -> None:
        if token_budget < rows:
            raise ValueError(f"a token budget of {token_budget} cannot decode {rows} rows in one step")
        self._rows, self._token_budget, self._max_waiting = rows, token_budget, max_waiting
        self._waiting: dict[int, Row] = {}
        self._running: dict[int, Row] = {}

    @property
    def n_waiting(self) -> int:
        """Rows without a place."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Rows with a place."""
        return len(self._running)

    def waiting(self) -> Iterator[Row]:
        """In order of arrival."""
        return iter(self._waiting.values())

    def add(self, row: Row) -> None:
        """A row joins the queue. Raises Overloaded when the queue is full."""
        if row.key in self._waiting or row.key in self._running:
            raise ValueError(f"row {row.key} is already known")
        if row.length < 1:
            raise ValueError(f"row {row.key} has no token to run")
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} rows wait already")
        self._waiting[row.key] = row

    def drop(self, key: int) -> None:
        """A row is over, wherever it stood. Its place is free in the next plan."""
        self._waiting.pop(key, None)
        self._running.pop(key, None)

    def is_waiting(self, key: int) -> bool:
        """Whether the row has no place yet."""
        return key in self._waiting

    def admit(self, readiness: Callable[[str], Readiness]) -> list[int]:
        """The waiting rows that take a place now. They run from the next plan on."""
        admitted: list[int] = []
        for row in list(self._waiting.values()):
            state = Readiness.READY if row.adapter is None else readiness(row.adapter)
            if len(self._running) == self._rows or state is Readiness.BLOCKED:
                break
            if state is Readiness.READY:
                self._running[row.key] = self._waiting.pop(row.key)
                admitted.append(row.key)
        return admitted

    def plan(self) -> list[Chunk]:
        """The next step. Call ran() for each chunk once it is in the cache."""
        takes = {row.key: 1 for row in self._running.values() if row.pending == 1}
        budget = self._token_budget - len(takes)
        for row in self._running.values():
            if row.pending > 1 and budget > 0:
                takes[row.key] = min(row.pending, budget)
                budget -= takes[row.key]
        return [
            Chunk(row.key, row.cached, takes[row.key], is_last=takes[row.key] == row.pending)
            for row in self._running.values()
            if row.key in takes
        ]

    def ran(self, chunk: Chunk) -> None:
        """The chunk's tokens are in the cache."""
        if (row := self._running.get(chunk.key)) is not None:
            row.cached = chunk.start + chunk.count

    def grow(self, key: int, by: int = 1) -> None:
        """More tokens of this row are known: the one just drawn, or the virtual ones of an adapter just seated."""
        if (row := self._running.get(key)) is not None:
            row.length += by
