"""Decode steps that a device repeats by itself: the engine's rows, the forms on record, the way back to the host."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.cache import KVCache
from core.cuda_graph import CudaGraph, GraphMemory, Repeated
from core.decode import StillStep, is_still
from core.effects import Effect, LowRank
from core.model import RoutedModel
from core.ops import choice
from worker.engine.graphs import Form, Graphs, form_of

Record = Callable[[Callable[[], Tensor]], Repeated]


class StillSteps:
    """All forms of one model's decode step over one cache."""

    def __init__(self, model: RoutedModel, cache: KVCache, record: Record) -> None:
        """record: puts a step on record."""
        self._model, self._cache = model, cache
        self._steps: dict[Form, StillStep] = {}
        self.graphs = Graphs(lambda form: record(self._steps[form].run))

    def serves(self, counts: Sequence[int], effects: Sequence[Effect | None]) -> bool:
        """Whether rows of so many tokens, which wear these, are a step for this."""
        return all(count == 1 for count in counts) and all(map(is_still, effects))

    def run(self, ids: Sequence[int], slots: Sequence[int], effects: Sequence[Effect | None]) -> Tensor:
        """The hidden states of these rows, one token of each: [B, H]. Their slots have grown by it."""
        is_bare = not any(isinstance(effect, LowRank) for effect in effects)
        form = form_of(len(ids), self._cache.slots, is_bare=is_bare)
        if form not in self._steps:
            self._steps[form] = StillStep(self._model, self._cache, form.rows, is_bare=is_bare)
        step = self._steps[form]
        recorded = self.graphs.find(form, step.fill(ids, slots, effects))
        hidden = step.run() if recorded is None else recorded.replay()
        for slot in slots:
            self._cache.lengths[slot] += 1
        return hidden[: len(ids)]


def still_steps(model: RoutedModel, cache: KVCache) -> StillSteps | None:
    """For a device that can repeat steps, and has kernels that do not ask the host how long rows are; else None."""
    if not choice.has_kernels(model.device):
        return None
    memory = GraphMemory()

    def record(step: Callable[[], Tensor]) -> Repeated:
        with torch.inference_mode():
            return CudaGraph(step, model.device, memory)

    return StillSteps(model, cache, record)
