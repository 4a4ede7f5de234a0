"""Of benchmarks/gpu.py: thousands of registered adapters in host memory, of which few fit on the device.

Rows go through the engine as requests do, each with a prompt and an adapter by chance. The arms differ in which: none;
as many adapters as fit, so that all are there once they are warm; all that are registered, by Zipf or evenly; and by
Zipf without a queue, so that nothing can be fetched ahead. Every arm is warmed up by rows of another draw.
"""

import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from core.effects import LowRank
from core.model import RoutedModel
from core.routing import resident
from core.specs.generation import AdapterRef, Frame, SamplingSpec
from worker.engine.engine import Engine
from worker.engine.sequences import Sequence as Row
from worker.engine.text import TextStream

Found = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    registered: int = 2000
    on_device: int = 64  # adapters that fit there
    rank: int = 16
    rows: int = 64  # at once
    requests: int = 768  # of one arm
    prompt: int = 128  # tokens
    new: int = 32


@dataclass(frozen=True)
class Arm:
    """Who is asked for: the first so many adapters, the k-th of them in proportion to k ** -skew."""

    name: str
    adapters: int
    skew: float = 0.0
    is_queued: bool = True


def arms_of(sizes: Sizes) -> list[Arm]:
    """In the order they are run."""
    return [
        Arm("base", 0),
        Arm("as many as fit", sizes.on_device),
        Arm("registered, Zipf", sizes.registered, 1.0),
        Arm("registered, even", sizes.registered),
        Arm("registered, Zipf, no queue", sizes.registered, 1.0, is_queued=False),
    ]


class Registry:
    """Low-rank adapters on q and v by digest, in host memory: each one run of bytes, pinned beside a GPU."""

    def __init__(self, model: RoutedModel, sizes: Sizes) -> None:
        self._model, self._rank = model, sizes.rank
        self._widths = {n: s.widths for n, s in model.sites.items() if n.rpartition(".")[2][0] in "qv"}
        self._numbers = sum(sizes.rank * (i + o) for i, o in self._widths.values())
        self._made = torch.Generator(device=model.device).manual_seed(0)
        with torch.inference_mode(mode=False), torch.no_grad():
            self._held = [self._effect() for _ in range(sizes.registered)]

    @property
    def size_bytes(self) -> int:
        """Of one adapter."""
        return self._numbers * self._model.dtype.itemsize

    def __call__(self, digest: str) -> LowRank:
        """The serving form, copied to the device as the host tier copies it."""
        moved = resident(self._held[int(digest, 16) - 1], device=self._model.device, dtype=self._model.dtype)
        assert isinstance(moved, LowRank)
        return moved

    def _effect(self) -> LowRank:
        drawn = torch.randn(self._numbers, generator=self._made, device=self._model.device) / 50
        is_pinned = self._model.device.type == "cuda"
        held = torch.empty(self._numbers, dtype=self._model.dtype, pin_memory=is_pinned).copy_(drawn)
        a: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        at = 0
        for name, (inputs, outputs) in self._widths.items():
            middle, end = at + self._rank * inputs, at + self._rank * (inputs + outputs)
            a[name], b[name] = held[at:middle].view(self._rank, inputs), held[middle:end].view(outputs, self._rank)
            at = end
        return LowRank(a, b, dict.fromkeys(a, 1.0))


def many(model: RoutedModel, sizes: Sizes) -> list[Found]:
    """A row for every arm."""
    registry = Registry(model, sizes)
    return [one(model, registry, sizes, arm) for arm in arms_of(sizes)]


def one(model: RoutedModel, registry: Registry, sizes: Sizes, arm: Arm) -> Found:
    """One arm's rates, loads and times between tokens, in an engine of its own."""
    engine = Engine(
        model,
        registry,
        rows=sizes.rows,
        context=sizes.prompt + sizes.new + 1,
        adapter_memory_bytes=sizes.on_device * registry.size_bytes,
        max_waiting=sizes.requests,
    )
    served(engine, drawn(arm, sizes, seed=1), sizes, is_queued=arm.is_queued)
    before, began = loads_of(engine), time.perf_counter()
    times = served(engine, drawn(arm, sizes, seed=2), sizes, is_queued=arm.is_queued)
    wall_s, loads = time.perf_counter() - began, loads_of(engine) - before
    engine.stop()
    engine.run()  # which now only closes
    gaps = [1000 * (later - sooner) for said in times for sooner, later in pairwise(said)]
    return {
        "arm": arm.name,
        "adapters": arm.adapters,
        "tokens_per_s": sum(map(len, times)) / wall_s,
        "loads": loads,
        "hit_rate": 1 - loads / sizes.requests,
        "copied_gb_per_s": loads * registry.size_bytes / wall_s / 1e9,
        "between_p50_ms": statistics.median(gaps),
        "between_p99_ms": statistics.quantiles(gaps, n=100)[98],
        "device_gb": torch.cuda.max_memory_allocated() / 1e9 if model.device.type == "cuda" else None,
    }


def drawn(arm: Arm, sizes: Sizes, *, seed: int) -> list[int | None]:
    """Which adapter each request names."""
    if not arm.adapters:
        return [None] * sizes.requests
    shares = [(k + 1) ** -arm.skew for k in range(arm.adapters)]
    return [*random.Random(seed).choices(range(arm.adapters), shares, k=sizes.requests)]


def loads_of(engine: Engine) -> int:
    """How many adapters it has loaded so far."""
    return int(str(engine.status()["adapter_loads"]))


def served(engine: Engine, worn: Sequence[int | None], sizes: Sizes, *, is_queued: bool) -> list[list[float]]:
    """When each row's tokens came. Raises RuntimeError where a row failed.

    is_queued: all are asked for at once; else a row is asked for when there is a place for it.
    """
    said: list[list[tuple[Frame, float]]] = [[] for _ in worn]
    left = deque(enumerate(worn))
    while left or not engine.is_idle:
        under_way = sum(bool(frames) and not is_end(frames[-1][0]) for frames in said)
        places = len(left) if is_queued else sizes.rows - under_way
        for number, adapter in [left.popleft() for _ in range(min(places, len(left)))]:
            engine.submit(row(number, adapter, sizes, said[number]))
        if not engine.step():
            time.sleep(0.0002)  # an adapter is on its way
    failed = [frames[-1][0].error for frames in said if frames[-1][0].error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} rows failed, the first with {failed[0]}")
    return [[at for _, at in frames] for frames in said]


def is_end(frame: Frame) -> bool:
    """Whether it is a row's last."""
    return frame.fin is not None or frame.error is not None


def row(number: int, adapter: int | None, sizes: Sizes, said: list[tuple[Frame, float]]) -> Row:
    """A request of nobody, so that no two share a prompt."""
    digest = "" if adapter is None else f"{adapter + 1:064x}"
    return Row(
        key=number,
        prompt_ids=tuple(5 + (7 * number + t) % 90 for t in range(sizes.prompt)),
        offset=0,
        sampling=SamplingSpec(temperature=0, max_tokens=sizes.new),
        adapter=AdapterRef(id=digest[-4:], sha256=digest) if digest else None,
        stop_ids=frozenset(),
        text=TextStream(lambda _: "", stop=(), context=()),
        limit=sizes.new,
        emit=lambda frame: said.append((frame, time.perf_counter())),
    )
