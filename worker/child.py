"""The trainer child: started with few rights, listened to, told to stop. Knows no database and no blob store."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import structlog
from pydantic import ValidationError

from core.settings import Settings
from core.specs.assignment import TOLD, Assignment, Leave, Order, Told

log = structlog.get_logger()

ROOT = Path(__file__).parents[1]
LEASH = Path(__file__).with_name("leash.py")
OWN_TRAINER = (sys.executable, "-m", "worker.trainer_process")
LINE_BYTES = 1 << 20  # of one report
LOG_BYTES = 1 << 20  # of one log file; the one before it is kept
TAIL_BYTES = 4000
QUEUED_REPORTS = 4096  # then the child waits for us
LINGER_S = 2.0  # how long a dead child's last words may take

# What a trainer may know of our environment: how to find programs, libraries and devices; no secret has such a name.
_SYSTEM = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "PYTHONHASHSEED",
)
_HUB = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SSL_CERT_FILE")
PASSED_ON = frozenset((*_SYSTEM, *_HUB, "GRAFT_TEST", "GRAFT_CRASH_AT"))
_DEVICES = ("CUDA_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_")
PASSED_ON_PREFIXES = ("LC_", "OMP_", "GOMP_", "MKL_", "KMP_", *_DEVICES)


def environment(settings: Settings, ours: Mapping[str, str]) -> dict[str, str]:
    """The child's whole environment. ours: the supervisor's."""
    passed = {name: ours[name] for name in ours if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)}
    return {
        # Threads that wait for each other sleep soon, so that the API and the engine beside them get the processor.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
        "PYTHONUNBUFFERED": "1",
        **passed,
        "GRAFT_CHECKPOINT_STEPS": str(settings.checkpoint_steps),
        "GRAFT_CHECKPOINT_S": str(settings.checkpoint_s),
        "GRAFT_THREADS": str(settings.threads),
        "GRAFT_DEVICES_PER_JOB": str(settings.devices_per_job),
        "GRAFT_DIVIDE_BASE": str(settings.divide_base),
        "GRAFT_DEVICE": settings.device,
        "GRAFT_PRECISION": settings.precision,
    }


class Child:
    """One running trainer. Make it in the thread that will supervise it: it is killed when that thread ends.

    It begins with these assignments, at least one, and may be given more. Any thread may kill() it; the others of its
    members belong to the supervisor.
    """

    def __init__(
        self, command: Sequence[str], assignments: Sequence[Assignment], *, env: Mapping[str, str], log_file: Path
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=dict(env),
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self.pid = self._process.pid
        self._stdin = self._process.stdin
        self._log_file = log_file
        self._reports: queue.Queue[Told | None] = queue.Queue(QUEUED_REPORTS)
        self._is_silent = False
        self._died_at: float | None = None
        self._threads = [
            threading.Thread(target=self._listen, args=(self._process.stdout,), name="child-reports", daemon=True),
            threading.Thread(target=self._keep_log, args=(self._process.stderr,), name="child-log", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        for assignment in assignments:
            self.assign(assignment)

    def assign(self, assignment: Assignment) -> None:
        """Give it a job, a further one too. A child that is just leaving does not hear it."""
        self._order(assignment)

    def leave(self, job_id: str) -> None:
        """Ask it to let one job go at a checkpoint; the others go on."""
        self._order(Leave(job_id=job_id))

    def _order(self, order: Order) -> None:
        try:
            self._stdin.write(order.model_dump_json().encode() + b"\n")
            self._stdin.flush()  # and it stays open: its end means die
        except BrokenPipeError:
            log.warning("child.deaf", job_id=order.job_id, pid=self.pid)

    def next(self, timeout_s: float) -> Told | None:
        """The next that it tells, or None where nothing came in timeout_s."""
        try:
            told = self._reports.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._is_silent = self._is_silent or told is None
        return told

    @property
    def has_ended(self) -> bool:
        """Whether it is dead and every report was taken."""
        if self._process.poll() is None:
            return False
        self._died_at = self._died_at or time.monotonic()
        # A grandchild may hold the pipe open; what the child itself said is in it since before its death.
        is_late = time.monotonic() - self._died_at > LINGER_S and self._reports.empty()
        return self._is_silent or is_late

    def reap(self) -> int:
        """Wait for its death, end what it left behind, return its exit code: negative is the signal that killed it."""
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):  # an order that it did not live to hear
            self._stdin.close()
        deadline = time.monotonic() + LINGER_S
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            self.next(timeout_s=0.02)  # nobody will read what is still queued
        return code

    def terminate(self) -> None:
        """Ask it to write a checkpoint and to exit with 14."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it started, now."""
        self._signal_group(signal.SIGKILL)

    def tail(self) -> str:
        """The last of its log, for the operator: never for the customer."""
        if not self._log_file.exists():
            return ""
        return self._log_file.read_bytes()[-TAIL_BYTES:].decode(errors="replace")

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process.returncode is not None:
            return  # its number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _listen(self, stdout: IO[bytes]) -> None:
        while line := stdout.readline(LINE_BYTES):
            try:
                self._reports.put(TOLD.validate_json(line))
            except ValidationError as error:
                log.warning("child.unreadable_report", pid=self.pid, size_bytes=len(line), errors=error.error_count())
        self._reports.put(None)

    def _keep_log(self, stderr: IO[bytes]) -> None:
        while chunk := os.read(stderr.fileno(), 1 << 16):
            with self._log_file.open("ab") as file:
                file.write(chunk)
                is_full = file.tell() >= LOG_BYTES
            if is_full:
                self._log_file.replace(self._log_file.with_suffix(".1.log"))
