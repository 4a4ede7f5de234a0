"""What the engine did, counted: for /status, and through it for Prometheus. Knows no clock: seconds are told to it.

Adapters are many and labels must be few: counts are kept of REMEMBERED adapters and shown of the SHOWN that drew the
most tokens; all others are summed under OTHER.
"""

import bisect
from collections import OrderedDict
from dataclasses import dataclass, field, fields

SHOWN, REMEMBERED = 20, 1000  # shown: also what an engine says to the database every few seconds
BASE, OTHER = "base", "other"
STEP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FIRST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(slots=True)
class Histogram:
    """How many values lay at or below each bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)  # of values above the bound before and not above this one; last, above all
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def see(self, value: float) -> None:
        """One value more."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def told(self) -> dict[str, object]:
        """As JSON: counts add up from bound to bound, as Prometheus wants them, and the last is of all values."""
        summed, so_far = [], 0
        for count in self.counts:
            so_far += count
            summed.append(so_far)
        return {"bounds": self.bounds, "counts": summed, "sum": self.total}


@dataclass(slots=True)
class Counts:
    """Of one adapter, or of the bare base."""

    requests: int = 0
    hits: int = 0  # requests that found it in memory
    loads: int = 0
    prompt_tokens: int = 0  # that ran or were found
    tokens: int = 0  # drawn
    firsts: int = 0
    firsts_s: float = 0.0  # from acceptance to the first token, summed
    nexts: int = 0
    nexts_s: float = 0.0  # from a token to the next of its row, summed

    def add(self, other: "Counts") -> None:
        """Those of another adapter too."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def told(self) -> dict[str, object]:
        """As JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Tally:
    """All that is counted of one engine."""

    def __init__(self) -> None:
        self.steps, self.firsts, self.nexts = Histogram(STEP_S), Histogram(FIRST_S), Histogram(STEP_S)
        self.rows = 0  # that took part in steps: by the steps, how full they were
        self._of: OrderedDict[str, Counts] = OrderedDict()  # least recently asked for first
        self._gone = Counts()

    def of(self, adapter: str | None) -> Counts:
        """What is counted of an adapter, by its digest; of the base, None."""
        name = adapter or BASE
        if name not in self._of:
            self._of[name] = Counts()
            while len(self._of) > REMEMBERED:
                self._gone.add(self._of.popitem(last=False)[1])
        self._of.move_to_end(name)
        return self._of[name]

    def loaded(self, adapter: str) -> None:
        """It came into memory."""
        self.of(adapter).loads += 1

    def step(self, rows: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        self.rows += rows
        self.steps.see(seconds)

    def asked(self, adapter: str | None, *, is_hit: bool) -> None:
        """A request came. is_hit: it found its adapter in memory."""
        counts = self.of(adapter)
        counts.requests += 1
        counts.hits += is_hit

    def drew(self, adapter: str | None, seconds: float, *, is_first: bool) -> None:
        """A row drew a token so long after its last, or its first so long after it was accepted."""
        counts = self.of(adapter)
        counts.tokens += 1
        if is_first:
            counts.firsts, counts.firsts_s = counts.firsts + 1, counts.firsts_s + seconds
            self.firsts.see(seconds)
        else:
            counts.nexts, counts.nexts_s = counts.nexts + 1, counts.nexts_s + seconds
            self.nexts.see(seconds)

    def told(self) -> dict[str, object]:
        """As JSON, without the adapters."""
        return {
            "step_s": self.steps.told(),
            "first_token_s": self.firsts.told(),
            "next_token_s": self.nexts.told(),
            "rows_run": self.rows,
        }

    def by_adapter(self) -> dict[str, dict[str, object]]:
        """As JSON: the base and the adapters that are shown, and all others as one."""
        names = sorted(self._of, key=lambda name: self._of[name].tokens, reverse=True)
        rest = Counts()
        rest.add(self._gone)
        for name in names[SHOWN:]:
            rest.add(self._of[name])
        return {name: self._of[name].told() for name in names[:SHOWN]} | {OTHER: rest.told()}
