"""A process's place in the team that trains a job: said by its environment, torchrun's or our own. Torch-free."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.settings import Settings
    from core.team import Team

MEETING_FILE = "GRAFT_TEAM_FILE"  # where processes that we started find one another; torchrun's have an address


@dataclass(frozen=True)
class Place:
    """rank 0 leads. device: which of this machine's devices, from 0."""

    rank: int
    size: int
    device: int
    at: Path | None  # a file to meet at; None under torchrun

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place | None":
        """What the environment says; None for a process by itself."""
        size = int(environment.get("WORLD_SIZE", "1"))
        if size == 1:
            return None
        rank, at = int(environment["RANK"]), environment.get(MEETING_FILE)
        return cls(rank, size, int(environment.get("LOCAL_RANK", rank)), Path(at) if at else None)

    @property
    def environment(self) -> dict[str, str]:
        """What says it to a process that we start."""
        said = {"RANK": str(self.rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(self.device)}
        return said | ({} if self.at is None else {MEETING_FILE: str(self.at)})

    def meet(self, settings: "Settings") -> "Team":
        """Takes its device and waits for the others. Raises ValueError where this machine has no such device."""
        import torch  # noqa: PLC0415 - a place is known before torch is

        from core.team import Team  # noqa: PLC0415

        if settings.device == "cpu" or not torch.cuda.is_available():
            if not settings.threads and "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(max(1, torch.get_num_threads() // self.size))
            # Processes of one machine need no way that leads out of it, and a host's name may resolve to nowhere.
            if self.at is not None and Path("/sys/class/net/lo").exists():
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            return Team.meet(self.rank, self.size, torch.device("cpu"), at=self.at)
        if self.device >= torch.cuda.device_count():
            raise ValueError(
                f"GRAFT_DEVICES_PER_JOB is {self.size}, but this process sees {torch.cuda.device_count()} CUDA "
                "devices: set it to so many at most, or let CUDA_VISIBLE_DEVICES name more"
            )
        torch.cuda.set_device(self.device)
        return Team.meet(self.rank, self.size, torch.device("cuda", self.device), at=self.at)
