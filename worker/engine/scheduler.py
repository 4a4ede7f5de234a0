"""Which rows run next. Pure arithmetic over waiting and running rows: no torch, no clock, no database.

Every step, rows that decode come first, each with its one token, so that a long prompt never stalls a neighbour. What
is left of the token budget goes to prompts, oldest first, in chunks. A row waits until a place is free and its adapter
is resident; rows behind it whose adapters are resident may pass it. Only when an adapter finds no memory does everybody
behind it wait, so that the rows that hold the memory can drain.

Places go by turns (fairness.py) on two levels. Among classes of priority, each is served SHARE times as much as the
next below it while both have rows waiting, so nothing starves. Within a class, tenants are served in proportion to
their weights, and a tenant's rows in order of arrival. A prompt's token counts PROMPT, a drawn one DRAWN.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from worker.engine.fairness import Ledger

PROMPT, DRAWN = 1.0, 2.0  # service in one token; a drawn one costs a step, a prompt's shares one
SHARE = 8.0  # of a class of priority, beside the next below it


class Overloaded(Exception):
    """As many rows wait as may, and none of them is to give way."""


class Readiness(Enum):
    """Of an adapter, as the scheduler sees it."""

    READY = "ready"
    LOADING = "loading"
    BLOCKED = "blocked"  # loaded, but there is no memory until running rows let go of theirs


Line = tuple[int, str]  # the rows of one class of priority and one tenant


@dataclass(slots=True)
class Row:
    """What the scheduler knows of a sequence. length: tokens known, prompt and drawn; cached: those already run."""

    key: int
    length: int
    adapter: str | None = None
    cached: int = 0
    tenant: str = ""
    weight: float = 1.0  # of the tenant
    priority: int = 0  # the larger, the sooner
    deadline: float = math.inf  # of the caller's clock
    arrival: int = 0  # set by add()
    has_run: bool = False  # whether any of its tokens ran, and were not found

    @property
    def pending(self) -> int:
        """Tokens still to run; 1 while decoding."""
        return self.length - self.cached

    @property
    def line(self) -> Line:
        """Where it waits."""
        return self.priority, self.tenant


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a row, to run in this step. After the last known token one more is drawn."""

    key: int
    start: int
    count: int
    is_last: bool


class Scheduler:
    """Waiting rows in lines, and at most `rows` running ones."""

    def __init__(self, *, rows: int, token_budget: int, max_waiting: int) -> None:
        if token_budget < rows:
            raise ValueError(f"a token budget of {token_budget} cannot decode {rows} rows in one step")
        self._rows, self._token_budget, self._max_waiting = rows, token_budget, max_waiting
        self._waiting: dict[int, Row] = {}
        self._lines: dict[Line, dict[int, Row]] = {}  # the same rows; no line is empty
        self._running: dict[int, Row] = {}
        self._classes = Ledger[int]()
        # One for each class: what another is served, or waits for, says nothing of where a tenant is to begin.
        self._tenants: defaultdict[int, Ledger[Line]] = defaultdict(Ledger)
        self._arrivals = 0

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

    def queue(self) -> Iterator[Row]:
        """The waiting rows in the order of their turns, each counted as served with its prompt once it is named."""
        turns: dict[int, list[tuple[float, int, Row, Iterator[Row]]]] = {}
        for line, rows in self._lines.items():
            rest = iter(rows.values())
            head = next(rest)
            served = self._tenants[head.priority].of(line)
            turns.setdefault(head.priority, []).append((served, head.arrival, head, rest))
        for heap in turns.values():
            heapq.heapify(heap)
        classes = [(self._classes.of(priority), -priority) for priority in turns]
        heapq.heapify(classes)
        while classes:
            served, negative = classes[0]
            row = _next_of(heap := turns[-negative])
            yield row
            if heap:
                heapq.heapreplace(classes, (served + row.length * PROMPT / SHARE**row.priority, negative))
            else:
                heapq.heappop(classes)

    def add(self, row: Row) -> int | None:
        """A row joins the queue. Of a full queue one row may have to give way: its key.

        Raises Overloaded when the queue is full and nobody has a larger part in it than this row's tenant would.
        """
        if row.key in self._waiting or row.key in self._running:
            raise ValueError(f"row {row.key} is already known")
        if row.length < 1:
            raise ValueError(f"row {row.key} has no token to run")
        if not row.weight > 0:
            raise ValueError(f"row {row.key}: a tenant's weight is above 0, found {row.weight}")
        leaving = self._giving_way(row) if len(self._waiting) >= self._max_waiting else None
        if leaving is not None:
            self.drop(leaving)
        if row.line not in self._lines:
            self._join(row)
        self._arrivals += 1
        row.arrival = self._arrivals
        self._waiting[row.key] = row
        self._lines.setdefault(row.line, {})[row.key] = row
        return leaving

    def drop(self, key: int) -> None:
        """A row is over, wherever it stood. Its place is free in the next plan."""
        if key in self._waiting:
            self._leave_queue(key)
        self._running.pop(key, None)
        if not self._waiting and not self._running:
            self._classes.clear()
            self._tenants.clear()

    def is_waiting(self, key: int) -> bool:
        """Whether the row has no place yet."""
        return key in self._waiting

    def expired(self, now: float) -> list[int]:
        """The rows whose deadline is past, with or without a place."""
        return [row.key for rows in (self._waiting, self._running) for row in rows.values() if row.deadline <= now]

    def admit(self, readiness: Callable[[str], Readiness]) -> list[int]:
        """The waiting rows that take a place now. They run from the next plan on."""
        admitted: list[int] = []
        if len(self._running) < self._rows:
            for row in self.queue():
                state = Readiness.READY if row.adapter is None else readiness(row.adapter)
                if len(self._running) + len(admitted) == self._rows or state is Readiness.BLOCKED:
                    break
                if state is Readiness.READY:
                    admitted.append(row.key)
        for key in admitted:
            row = self._leave_queue(key)
            self._charge(row, row.length * PROMPT)
            self._running[key] = row
        return admitted

    def unstarted(self) -> list[int]:
        """Rows with a place of which nothing has run."""
        return [row.key for row in self._running.values() if not row.has_run]

    def reuse(self, key: int, count: int) -> None:
        """The next tokens of a row need not run, and are not charged. The last never is among them."""
        row = self._running[key]
        if not 0 <= count < row.pending:
            raise ValueError(f"row {key} has {row.pending} tokens to run: {count} cannot be known already")
        self._charge(row, -count * PROMPT)
        row.cached += count

    def plan(self, held: Collection[int] = ()) -> list[Chunk]:
        """The next step, without the rows that are held. Call ran() for each chunk once it is in the cache."""
        going = [row for row in self._running.values() if row.key not in held]
        takes = {row.key: 1 for row in going if row.pending == 1}
        budget = self._token_budget - len(takes)
        for row in going:
            if row.pending > 1 and budget > 0:
                takes[row.key] = min(row.pending, budget)
                budget -= takes[row.key]
        return [
            Chunk(row.key, row.cached, takes[row.key], is_last=takes[row.key] == row.pending)
            for row in going
            if row.key in takes
        ]

    def ran(self, chunk: Chunk) -> None:
        """The chunk's tokens are in the cache."""
        if (row := self._running.get(chunk.key)) is not None:
            row.cached, row.has_run = chunk.start + chunk.count, True
            if chunk.is_last:
                self._charge(row, DRAWN)

    def grow(self, key: int, by: int = 1) -> None:
        """More tokens of this row are known: the one just drawn, or the virtual ones of an adapter just seated."""
        if (row := self._running.get(key)) is not None:
            row.length += by

    def _join(self, row: Row) -> None:
        """Its line was empty, and so perhaps its class."""
        classes = {priority for priority, _ in self._lines}
        if row.priority not in classes:
            self._classes.join(row.priority, classes)
        tenants = self._tenants[row.priority]
        tenants.join(row.line, (line for line in self._lines if line[0] == row.priority))
        running = {r.line for r in self._running.values()}
        tenants.forget(lambda line: line in self._lines or line in running or line == row.line)

    def _leave_queue(self, key: int) -> Row:
        row = self._waiting.pop(key)
        line = self._lines[row.line]
        del line[key]
        if not line:
            del self._lines[row.line]
            self._tenants[row.priority].leave(row.line)
            if all(priority != row.priority for priority, _ in self._lines):
                self._classes.leave(row.priority)
        return row

    def _charge(self, row: Row, service: float) -> None:
        self._tenants[row.priority].charge(row.line, service / row.weight)
        self._classes.charge(row.priority, service / SHARE**row.priority)

    def _giving_way(self, row: Row) -> int:
        """The newest row of the fullest line of the lowest class, if a row of this class and tenant may replace it."""
        lowest = min((priority for priority, _ in self._lines), default=row.priority + 1)
        if lowest <= row.priority:
            parts = {line: len(rows) / _last(rows).weight for line, rows in self._lines.items() if line[0] == lowest}
            fullest = max(parts, key=parts.__getitem__)
            own = (len(self._lines.get(row.line, ())) + 1) / row.weight
            if lowest < row.priority or parts[fullest] > own:
                return _last(self._lines[fullest]).key
        raise Overloaded(f"{len(self._waiting)} rows wait already")


def _last(rows: dict[int, Row]) -> Row:
    return next(reversed(rows.values()))


def _next_of(heap: list[tuple[float, int, Row, Iterator[Row]]]) -> Row:
    """The row whose turn it is; behind it comes the next of its line."""
    served, _, row, rest = heap[0]
    following = next(rest, None)
    if following is None:
        heapq.heappop(heap)
    else:
        served += row.length * PROMPT / row.weight
        heapq.heapreplace(heap, (served, following.arrival, following, rest))
    return row
