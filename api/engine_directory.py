"""Which engine is to answer: alive, ready, of the right base model and precision; first who wore the adapter before.

Unless that one has no place left and more than its part of all that this process asks: then the least busy first.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from anyio.to_thread import run_sync

from core.records import presences
from core.records.database import Database
from core.records.tables import Presence

FRESH_S = 1.0  # how long a reading of the directory is believed
FULL = 1.25  # times the mean of what is under way: who has more, and no place left, is passed by
REST_S = (1.0, 30.0)  # of an engine that failed: at first, doubled by every further failure, and at most


@dataclass
class _Rest:
    until: float
    length_s: float


class EngineDirectory:
    """A short-lived copy of the engines' presences, and which of them rest after a failure. For one event loop."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._engines: Sequence[Presence] = ()
        self._read_at = float("-inf")
        self._rests: dict[tuple[str, float], _Rest] = {}
        self._under_way: Counter[tuple[str, float]] = Counter()

    async def choices(
        self, base_model: str, adapter_id: str | None, *, precision: str | None = "bf16", is_awake: bool = False
    ) -> list[Presence]:
        """Ready engines, the preferred first, the resting last or, with is_awake, not at all.

        precision: of the base model as they have opened it; None takes them all.

        Every API process comes to the same order.
        """
        is_fresh = self._clock() - self._read_at <= FRESH_S
        ready = self._ready(base_model, precision) if is_fresh else []
        if not ready:  # that there is none is never believed without a look
            self._engines = await run_sync(self._read)
            self._read_at = self._clock()
            ready = self._ready(base_model, precision)
        now = self._clock()
        if is_awake:
            ready = [engine for engine in ready if not self._rests_at(engine, now)]
        full = self._full(ready)
        return sorted(ready, key=lambda e: (self._rests_at(e, now), full.get(_life(e), 0), _weight(e.id, adapter_id)))

    @contextmanager
    def asking(self, engine: Presence) -> Iterator[None]:
        """One more request of this process is under way there."""
        life = _life(engine)
        self._under_way[life] += 1
        try:
            yield
        finally:
            self._under_way[life] -= 1
            if not self._under_way[life]:
                del self._under_way[life]

    def failed(self, engine: Presence) -> None:
        """It did not answer as it should: others come first for a while, and the directory is read anew."""
        shortest, longest = REST_S
        before = self._rests.get(_life(engine))
        length_s = min(longest, before.length_s * 2) if before else shortest
        self._rests[_life(engine)] = _Rest(self._clock() + length_s, length_s)
        self._read_at = float("-inf")

    def answered(self, engine: Presence) -> None:
        """It works: forget its failures."""
        self._rests.pop(_life(engine), None)

    def _ready(self, base_model: str, precision: str | None) -> list[Presence]:
        return [
            engine
            for engine in self._engines
            if engine.is_ready
            and engine.base_model == base_model
            and engine.url
            and precision in (None, precision_of(engine))
        ]

    def _full(self, engines: Sequence[Presence]) -> dict[tuple[str, float], int]:
        """Those with more than their part and no place left, and how much is under way there."""
        asked = {_life(engine): self._under_way[_life(engine)] for engine in engines}
        part = FULL * sum(asked.values()) / max(1, len(asked))
        places = {_life(engine): engine.details.get("rows") for engine in engines}
        over = {life: n for life, n in asked.items() if n > part}
        return {life: n for life, n in over.items() if isinstance(rows := places[life], int) and n >= rows}

    def _rests_at(self, engine: Presence, now: float) -> bool:
        rest = self._rests.get(_life(engine))
        return rest is not None and rest.until > now

    def _read(self) -> Sequence[Presence]:
        with self._database.session() as session:
            found = presences.alive(session, "engine")
        known = {_life(engine) for engine in found}
        self._rests = {life: rest for life, rest in self._rests.items() if life in known}
        return found


def precision_of(engine: Presence) -> str:
    """What it has opened its base model in; one that does not say so is of a version that knew only 16 bits."""
    return str(engine.details.get("base_precision", "bf16"))


def _life(engine: Presence) -> tuple[str, float]:
    """An engine from one start to its end: after a restart it owes nothing for before."""
    return engine.id, engine.started_at


def _weight(engine_id: str, adapter_id: str | None) -> bytes:
    """Rendezvous hashing: each adapter ranks the engines in its own order; one that leaves moves only its own."""
    return hashlib.sha256(f"{engine_id}\0{adapter_id or ''}".encode()).digest()
