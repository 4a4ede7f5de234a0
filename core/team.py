"""Several processes, one device each, that train the same runs: one leads, the others follow what it tells.

What is told is JSON over gloo and tensors over the device's own backend (NCCL on CUDA); nothing is pickled. Processes
of one machine find one another through a file in a private folder, so no port is opened to find them. A process that
dies breaks its connections: whoever waits for it raises. Knows no run and no model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

# Those who follow wait through validations of the leader for its next word. A process that hangs is its supervisor's
# business (GRAFT_STALL_S), one that dies ends the others at once: no waiting has to end by itself.
PATIENCE = timedelta(days=7)
LEADER = 0


class Team:
    """One process's place among them, from when all have come until leave()."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        """Of a process group that is there."""
        self.rank, self.size, self.device = rank, size, device
        self.is_dividing = False  # the base model: each process has a part of every layer (core/division.py)
        self.is_in_turn = False  # everyone knows what everyone does

    @classmethod
    def meet(cls, rank: int, size: int, device: torch.device, *, at: Path | None = None) -> "Team":
        """Waits until all are there. at: a file that is not there yet, the same for all; None asks the environment.

        The environment is torchrun's: MASTER_ADDR and MASTER_PORT.
        """
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        where = "env://" if at is None else f"file://{at.resolve()}"
        dist.init_process_group(backend, init_method=where, rank=rank, world_size=size, timeout=PATIENCE)
        return cls(rank, size, device)

    @property
    def is_leader(self) -> bool:
        """Whether it tells the others what to do."""
        return self.rank == LEADER

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Of the leader, from when all were told of a turn until it is over."""
        self.is_in_turn = True
        try:
            yield
        finally:
            self.is_in_turn = False

    def tell(self, order: str) -> None:
        """The leader's: to all others."""
        content = _bytes(order)
        dist.broadcast(torch.tensor(len(content)), LEADER)
        dist.broadcast(content, LEADER)

    def hear(self) -> str:
        """What the leader tells next."""
        length = torch.zeros((), dtype=torch.int64)
        dist.broadcast(length, LEADER)
        content = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, LEADER)
        return bytes(content.numpy()).decode()

    def compare(self, said: str) -> list[str]:
        """What everyone says now, by rank."""
        mine = _bytes(said)
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor(len(mine)))
        longest = max(1, *(int(length) for length in lengths))
        heard = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(heard, torch.nn.functional.pad(mine, (0, longest - len(mine))))
        return [bytes(t[: int(n)].numpy()).decode() for t, n in zip(heard, lengths, strict=True)]

    def spread(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The leader's tensors, the same everywhere. Each gives its own of the same shapes and types, in one order."""
        spread = list(tensors)
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            places = [place for place, t in enumerate(tensors) if t.dtype == dtype]
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in places]).to(self.device)
            dist.broadcast(flat, LEADER)
            cut = torch.split(flat, [tensors[place].numel() for place in places])
            for place, piece in zip(places, cut, strict=True):
                spread[place] = piece.view(tensors[place].shape)
        return spread

    def add_up(self, tensor: Tensor) -> None:
        """In the leader's tensor stands the sum of everyone's then; in another's nothing of use."""
        dist.reduce(tensor, LEADER)

    def leave(self) -> None:
        """Once the leader has told everyone to."""
        dist.destroy_process_group()


def _bytes(text: str) -> Tensor:
    """[n] uint8; torch makes no tensor of an empty buffer."""
    content = bytearray(text.encode())
    return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
