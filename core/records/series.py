"""A job's metrics as series over its steps, thinned to so many points. Of a step told twice the later telling counts.

A point stands for a run of steps of one width: the mean of what was told in it, its least and its greatest, so that no
spike is lost by thinning.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.records.scope import Account, of
from core.records.tables import Job, JobEvent

MANY = 1000  # rows in memory at once
NO_SERIES = ("step", "total_steps", "best_step", "ranks")


@dataclass
class Series:
    """One metric. steps: of each point the last step in it that told of this metric; all lists are as long as that."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)

    def add(self, step: int, told: list[float]) -> None:
        """A point, of what was told since the one before up to this step."""
        self.steps.append(step)
        self.values.append(math.fsum(told) / len(told))
        self.lows.append(min(told))
        self.highs.append(max(told))


@dataclass
class Ranks:
    """Ranks that moved: values[i][m] is the rank of modules[m] from steps[i] on, up to the next of steps."""

    steps: list[int] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    values: list[list[int]] = field(default_factory=list)

    def add(self, step: int, ranks: Mapping[str, int]) -> None:
        """All modules' ranks as they stand at a step."""
        self.modules = self.modules or list(ranks)
        self.steps.append(step)
        self.values.append([ranks.get(module, 0) for module in self.modules])


@dataclass(frozen=True)
class Metrics:
    """What was asked for. width: steps in a point. last_event: the newest that is in it, 0 where there is none."""

    first_step: int
    last_step: int
    width: int
    last_event: int
    series: dict[str, Series]
    ranks: Ranks


def metrics(
    session: Session, account: Account, job_id: str, *, from_step: int, to_step: int | None, resolution: int
) -> Metrics:
    """Of the account's job, from_step to to_step, both included, in at most resolution points a metric."""
    told = select(JobEvent).join(Job, Job.id == JobEvent.job_id)
    told = told.where(Job.id == job_id, *of(Job, account), JobEvent.type == "metrics", JobEvent.step >= from_step)
    if to_step is not None:
        told = told.where(JobEvent.step <= to_step)
    bounds = told.with_only_columns(func.min(JobEvent.step), func.max(JobEvent.step), func.max(JobEvent.id))
    first, last, newest = session.execute(bounds).one()
    if first is None or last is None:
        return Metrics(from_step, from_step, 1, 0, {}, Ranks())
    width = -(-(last - first + 1) // resolution)
    ordered = told.where(JobEvent.id <= newest).with_only_columns(JobEvent.step, JobEvent.event_data)
    rows = session.execute(ordered.order_by(JobEvent.step, JobEvent.id).execution_options(yield_per=MANY))
    series, ranks = thinned(_by_step((step, said) for step, said in rows), first, width)
    return Metrics(first, last, width, newest or 0, series, ranks)


def thinned(told: Iterable[tuple[int, Mapping[str, Any]]], first: int, width: int) -> tuple[dict[str, Series], Ranks]:
    """Points of width steps, from first on. told: what each step said, in the order of steps, each step once.

    Semantics: for each run of width steps and each metric in it, the mean, least and greatest of its numbers.
    """
    series, ranks = dict[str, Series](), Ranks()
    for _, run in itertools.groupby(told, lambda said: (said[0] - first) // width):
        numbers, steps, moved = dict[str, list[float]](), dict[str, int](), None
        for step, said in run:
            for name in said:
                if name not in NO_SERIES and _is_number(said[name]):
                    numbers.setdefault(name, []).append(said[name])
                    steps[name] = step
            moved = (step, said["ranks"]) if said.get("ranks") else moved
        for name, values in numbers.items():
            series.setdefault(name, Series()).add(steps[name], values)
        if moved:
            ranks.add(*moved)
    return series, ranks


def _by_step(rows: Iterable[tuple[int | None, Mapping[str, Any] | None]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Everything that was told of each step, the later over the earlier where it says something."""
    for step, told in itertools.groupby(rows, lambda row: row[0]):
        if step is not None:
            yield step, {name: v for _, said in told for name, v in (said or {}).items() if v is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
