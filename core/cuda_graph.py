"""A step that a GPU repeats by itself: all its launches recorded once, then begun by a single one."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 2  # what kernels and libraries put off until a first call must not be recorded


class Repeated(Protocol):
    """A step on record."""

    def replay(self) -> Tensor:
        """Runs it on what its inputs hold now. The tensor returned is written anew by the next replay."""


class CudaGraph:
    """A step on record on a CUDA device."""

    def __init__(self, step: Callable[[], Tensor], device: torch.device, memory: "GraphMemory") -> None:
        """Records step. It is run several times, with its inputs as they are, so it must bear being run again."""
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory.handle):
            self._out = step()

    def replay(self) -> Tensor:
        """What the step returns."""
        self._graph.replay()
        return self._out


class GraphMemory:
    """Memory of what steps make on the way: steps that never run at once share it."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
