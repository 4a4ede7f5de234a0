"""An arm of benchmarks/serving.py with sparse traffic: rows that come one by one, to one engine or to several.

`python -m benchmarks.serving_sparse PLAN.json`, a round for every line it reads, as benchmarks/serving_ours.py. Several
engines, each with a base model of its own, stand in one process and take turns, a step each, as a fair system gives one
core to several processes. Time is this process's own CPU time, and what it would have slept until the next row comes:
a busy machine moves it little.
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.serving_ours import Arm, Found, Plan, serve
from core.specs.generation import Frame

KIB = 1024


class Clock:
    """CPU seconds of this process and the seconds skipped, while it would have slept, since its start."""

    def __init__(self) -> None:
        self._start = time.process_time()

    def now(self) -> float:
        """Seconds."""
        return time.process_time() - self._start

    def skip_to(self, moment: float) -> None:
        """Sleeps without doing so."""
        self._start -= max(0.0, moment - self.now())


class Fleet:
    """Engines side by side, and which of them serves which row."""

    def __init__(self, plan: Plan) -> None:
        """plan["engine_of"]: each row's engine; plan["arrivals"]: the second at which it comes."""
        self.plan = plan
        self.arms = [Arm(plan) for _ in range(1 + max(plan["engine_of"]))]

    def round(self) -> Found:
        """All rows, each when it comes."""
        clock, wall, started = Clock(), time.perf_counter(), time.process_time()
        times: list[list[float]] = [[] for _ in self.plan["rows"]]
        coming = list(enumerate(self.plan["arrivals"]))
        while coming or not all(arm.engine.is_idle for arm in self.arms):
            if all(arm.engine.is_idle for arm in self.arms):
                clock.skip_to(coming[0][1])
            while coming and coming[0][1] <= clock.now():
                self._submit(coming.pop(0)[0], times, clock)
            stepped = [arm.engine.step() for arm in self.arms if not arm.engine.is_idle]
            if not any(stepped):
                time.sleep(0.001)  # an adapter is on its way
        spent = time.process_time() - started
        first = [said[0] - came for said, came in zip(times, self.plan["arrivals"], strict=True)]
        between = [b - a for said in times for a, b in pairwise(said)]
        tokens = sum(row["new"] for row in self.plan["rows"])
        rates = {"tokens": tokens, "cpu_s": spent, "wall_s": time.perf_counter() - wall, "lasted_s": clock.now()}
        return rates | {"first_token": spread(first), "between_tokens": spread(between), "memory_mb": memory_mb()}

    def _submit(self, number: int, times: list[list[float]], clock: Clock) -> None:
        arm = self.arms[self.plan["engine_of"][number]]

        def hear(frame: Frame) -> None:
            times[number].extend([clock.now()] * len(frame.ids))

        arm.engine.submit(arm.intake.sequence(arm.spec(number), hear))


def sparse(plan: Plan) -> Callable[[], Found]:
    """Rounds of the same rows; the first, which loads all adapters, is not counted."""
    fleet = Fleet(plan)
    fleet.round()
    return fleet.round


def spread(seconds: list[float]) -> dict[str, Any]:
    """In milliseconds."""
    return {"p50_ms": statistics.median(seconds) * 1e3, "p99_ms": statistics.quantiles(seconds, n=100)[98] * 1e3}


def memory_mb() -> float:
    """What this process holds, pages that several mappings share counted once."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(said["Pss"].split()[0]) * KIB / 2**20


if __name__ == "__main__":
    serve({"sparse": sparse}, *sys.argv[1:])
