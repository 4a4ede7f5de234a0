"""What engines tell of themselves in their presences, as /metrics shows it.

Labels are few: the engines alive now, and of each the adapters that it shows by name, all others being one. An adapter
is called by the first characters of its content's digest, which tells nothing of whose it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import structlog
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from sqlalchemy.exc import SQLAlchemyError

from core.records import presences
from core.records.database import Database

log = structlog.get_logger()

DIGEST = 12  # characters of a label
GAUGES = {
    "running": ("graft_engine_running_rows", "Rows with a place."),
    "waiting": ("graft_engine_waiting_rows", "Rows without one."),
    "rows": ("graft_engine_places", "Rows that may run together."),
}
COUNTERS = {
    "steps": ("graft_engine_steps", "Steps of the engine."),
    "rows_run": ("graft_engine_step_rows", "Rows in all steps: divided by the steps, how full they were."),
}
HISTOGRAMS = {
    "step_s": ("graft_engine_step_seconds", "Of one step."),
    "first_token_s": ("graft_engine_first_token_seconds", "From a request's acceptance to its first token."),
    "next_token_s": ("graft_engine_next_token_seconds", "From a token to the next of its row."),
}
PREFIXES = {
    "hits": ("graft_prefix_cache_hit_tokens", "Tokens of prompts that need not run."),
    "misses": ("graft_prefix_cache_miss_tokens", "Tokens of prompts that had to."),
    "evictions": ("graft_prefix_cache_evictions", "Blocks that gave room to others."),
}
ADAPTERS = {
    "requests": ("graft_adapter_requests", "Requests."),
    "hits": ("graft_adapter_hits", "Requests that found the adapter in the engine's memory."),
    "loads": ("graft_adapter_loads", "Times it came into the engine's memory."),
    "prompt_tokens": ("graft_adapter_prompt_tokens", "Tokens of prompts."),
    "tokens": ("graft_adapter_tokens", "Tokens drawn."),
}
SUMMARIES = {
    "firsts": ("graft_adapter_first_token_seconds", "From a request's acceptance to its first token."),
    "nexts": ("graft_adapter_next_token_seconds", "From a token to the next of its row."),
}


class EngineCollector:
    """For a Prometheus registry: asked at each scrape."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """All families, each with the samples of every engine that tells of itself."""
        try:
            with self._database.session() as session:
                alive = presences.alive(session, "engine")
        except SQLAlchemyError as error:
            log.warning("metrics.engines_unknown", error=type(error).__name__)
            return
        told = {engine.id: engine.details["status"] for engine in alive if "status" in engine.details}
        yield from families(told)


def families(told: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """The status of each engine, by its id. What an engine of another version does not tell is left out."""
    flat = [(engine, status) for engine, status in told.items()]
    prefixes = [(engine, status.get("prefix_cache", {})) for engine, status in flat]
    adapters = [
        (engine, name if len(name) < DIGEST else name[:DIGEST], counts)
        for engine, status in flat
        for name, counts in status.get("by_adapter", {}).items()
    ]
    return [
        *_counted(GaugeMetricFamily, GAUGES, ["engine"], [([engine], status) for engine, status in flat]),
        *_counted(CounterMetricFamily, COUNTERS, ["engine"], [([engine], status) for engine, status in flat]),
        *_counted(CounterMetricFamily, PREFIXES, ["engine"], [([engine], status) for engine, status in prefixes]),
        *_counted(
            GaugeMetricFamily,
            {"bytes": ("graft_prefix_cache_bytes", "Of the blocks in use.")},
            ["engine"],
            [([engine], status) for engine, status in prefixes],
        ),
        *_counted(
            CounterMetricFamily, ADAPTERS, ["engine", "adapter"], [([e, a], counts) for e, a, counts in adapters]
        ),
        *_histograms(flat),
        *_summaries(adapters),
        _tiers(adapters),
    ]


def _counted(
    family: type[GaugeMetricFamily | CounterMetricFamily],
    names: Mapping[str, tuple[str, str]],
    labels: list[str],
    samples: Iterable[tuple[list[str], Mapping[str, Any]]],
) -> Iterator[Metric]:
    samples = list(samples)
    for field, (name, about) in names.items():
        made = family(name, about, labels=labels)
        for values, counts in samples:
            if field in counts:
                made.add_metric(values, counts[field])
        yield made


def _histograms(flat: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    flat = list(flat)
    for field, (name, about) in HISTOGRAMS.items():
        made = HistogramMetricFamily(name, about, labels=["engine"])
        for engine, status in flat:
            if field in status:
                bounds = [*map(str, status[field]["bounds"]), "+Inf"]
                buckets = list(zip(bounds, status[field]["counts"], strict=True))
                made.add_metric([engine], buckets, sum_value=status[field]["sum"])
        yield made


def _summaries(adapters: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Iterator[Metric]:
    adapters = list(adapters)
    for field, (name, about) in SUMMARIES.items():
        made = SummaryMetricFamily(name, about, labels=["engine", "adapter"])
        for engine, adapter, counts in adapters:
            if field in counts:
                made.add_metric([engine, adapter], count_value=counts[field], sum_value=counts[f"{field}_s"])
        yield made


def _tiers(adapters: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Metric:
    made = GaugeMetricFamily("graft_adapter_tier", "1 where an adapter is now.", labels=["engine", "adapter", "tier"])
    for engine, adapter, counts in adapters:
        if "tier" in counts:
            made.add_metric([engine, adapter, counts["tier"]], 1)
    return made
