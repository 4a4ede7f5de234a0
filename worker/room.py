"""How many jobs one trainer of this machine may train in step. Knows no job."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from core.settings import Settings

MOST = 8  # that auto comes to: with more, each has to wait noticeably long for its turn
GIB = 1 << 30
# What is left to a base model, its activations and the engine beside it, and what each job is counted with: its
# weights, moments and rows, of which the largest adapters have most.
KEPT_BYTES, JOB_BYTES = 6 * GIB, GIB
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def jobs_in_step(settings: Settings) -> int:
    """What GRAFT_JOBS_IN_STEP comes to here: 1 where memory is scarce."""
    if settings.jobs_in_step != "auto":
        return settings.jobs_in_step
    on_gpu = None if settings.device == "cpu" else gpu_bytes()
    return that_fit(host_bytes() if on_gpu is None else min(on_gpu, host_bytes()))


def that_fit(memory_bytes: int) -> int:
    """How many jobs, from 1 to MOST, go into so much memory."""
    return max(1, min(MOST, (memory_bytes - KEPT_BYTES) // JOB_BYTES))


def device_of(settings: Settings) -> dict[str, str | int]:
    """What a trainer here has for a job, all of it: core.specs.estimate.Device."""
    on_gpu = None if settings.device == "cpu" else gpu_bytes("memory.total")
    if on_gpu is not None:
        return {"kind": "cuda", "memory_bytes": on_gpu}
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"kind": "cpu", "memory_bytes": min(total, _allowed_bytes())}


def host_bytes() -> int:
    """What of this machine's memory is to be had now, or as much as our control group allows."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMINFO.exists():
        said = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        available = int(said["MemAvailable"].split()[0]) << 10
    return min(available, _allowed_bytes())


def _allowed_bytes() -> int:
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return sys.maxsize if limit == "max" else int(limit)


def gpu_bytes(figure: str = "memory.free") -> int | None:
    """The free memory of the first GPU; None where there is none. Asked of its driver: torch stays in the trainer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    ask = [tool, f"--query-gpu={figure}", "--format=csv,noheader,nounits"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=30)  # our own list
    lines = done.stdout.split()
    return int(lines[0]) << 20 if done.returncode == 0 and lines else None
