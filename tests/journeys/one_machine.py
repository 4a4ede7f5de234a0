"""The whole service as a person starts it, driven and watched from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from openai import OpenAI

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 120.0
IMPATIENT = {  # what takes minutes in a service takes moments in a test
    "GRAFT_DEVICE": "cpu",
    "GRAFT_PRECISION": "fp32",
    "GRAFT_THREADS": "1",
    "GRAFT_ENGINE_PRECISIONS": '["bf16"]',  # a second engine costs a small machine more than these journeys need
    "GRAFT_LEASE_S": "6",
    "GRAFT_HEARTBEAT_S": "0.5",
    "GRAFT_SWEEP_S": "0.5",
    "GRAFT_POLL_S": "2",
    "GRAFT_RETRY_BASE_S": "0.1",
    "GRAFT_DRAIN_S": "20",
    "GRAFT_CHECKPOINT_STEPS": "5",
    "GRAFT_REQUESTS_PER_MINUTE": "100000",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**settings):
    """This process's environment without its own GRAFT_ settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")} | settings


def until(is_so, within_s, what):
    deadline = time.monotonic() + within_s
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"{what} did not come about within {within_s} s"
        time.sleep(0.1)
    return answer


def processes():
    """pid -> (parent, when it began, command line) of everything alive on this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                found[int(entry.name)] = (int(fields[1]), fields[19], command)
    return found


def is_well(address):
    """Whether /readyz answers 200."""
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


class Service:
    """`python -m api.cli up` on a data folder, driven from outside."""

    def __init__(self, data_dir, **settings):
        self.data_dir = data_dir
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.output = data_dir.with_suffix(".out")
        self._settings = {"GRAFT_DATA_DIR": str(data_dir), "GRAFT_PORT": str(self.port), **settings}
        self._up = None
        self._ever = {}  # every process it was seen to have: (pid, when it began) -> command line

    def start(self):
        """Start it and return how many seconds it took to be ready."""
        began_at = time.monotonic()
        with self.output.open("ab") as out:
            self._up = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "up"],
                cwd=ROOT,
                env=clean_environment(**self._settings),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until(self._is_ready, READY_WITHIN_S, "readiness")
        except BaseException as fault:
            fault.add_note(self.story())
            self.kill()
            raise
        return time.monotonic() - began_at

    def _is_ready(self):
        assert self._up.poll() is None, f"it ended with {self._up.returncode}"
        return is_well(self.address)

    @property
    def key(self):
        return (self.data_dir / "admin.key").read_text().strip()

    def client(self):
        return OpenAI(base_url=f"{self.address}/v1", api_key=self.key, timeout=60.0, max_retries=2)

    def members(self):
        """pid -> command line of the launcher and all its descendants; remembered, to be looked for at the end."""
        alive = processes()
        family, size = {self._up.pid} & alive.keys(), -1
        while len(family) != size:
            size = len(family)
            family |= {pid for pid, (parent, _, _) in alive.items() if parent in family}
        self._ever |= {(pid, alive[pid][1]): alive[pid][2] for pid in family}
        return {pid: alive[pid][2] for pid in family}

    def member(self, words):
        """The pid of the youngest member whose command line has these words, or None."""
        return max((pid for pid, command in self.members().items() if words in command), default=None)

    def send(self, number):
        self.members()
        self._up.send_signal(number)

    def stop(self, number=signal.SIGINT, within_s=40.0):
        """Stop it as a person does; fails where any process of it outlives it. Returns how many seconds it took."""
        began_at = time.monotonic()
        self.send(number)
        status = self._up.wait(within_s)
        assert status == 0, self.story()
        self.assert_nothing_left()
        return time.monotonic() - began_at

    def kill(self):
        """SIGKILL to the launcher alone: the kernel ends the rest."""
        self.members()
        self._up.kill()
        self._up.wait()

    def left(self):
        alive = processes()
        return {pid: cmd for (pid, began), cmd in self._ever.items() if pid in alive and alive[pid][1] == began}

    def assert_nothing_left(self):
        until(lambda: not self.left(), 5.0, f"the end of {self.left()}")

    def end(self):
        """For a fixture's end: stop what still runs, whatever the test did."""
        if self._up and self._up.poll() is None:
            self.kill()
            self.assert_nothing_left()

    def story(self):
        """All that it printed and the end of each log: what one wants to read when a test fails."""
        parts = [f"--- up\n{self.output.read_text()[-4000:]}"]
        parts += [
            f"--- {log.name}\n{log.read_text()[-4000:]}" for log in sorted((self.data_dir / "logs").glob("*.log"))
        ]
        return "\n".join(parts)


def chat_lines(rows):
    """JSONL of (question, answer) rows."""
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows]
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in turns).encode()


def colours(n=24):
    """Rows that a tiny model can learn something of: the answer is one of two words."""
    return [(f"item {i}", "red" if i % 2 else "blue") for i in range(n)]


def upload(client, rows):
    """The id of a training file with these rows."""
    return client.files.create(file=("colours.jsonl", chat_lines(rows)), purpose="fine-tune").id


def finish(client, job_id, within_s=120.0):
    """The job once it is at its end."""

    def ended():
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in {"succeeded", "failed", "cancelled"} else None

    return until(ended, within_s, f"the end of {job_id}")


def wait_for_step(client, job_id, step, within_s=90.0):
    """Return once the job's metrics have reached a step."""

    def reached():
        events = client.fine_tuning.jobs.list_events(job_id, limit=50).data
        steps = [event.data["step"] for event in events if event.type == "metrics"]
        return max(steps, default=0) >= step

    until(reached, within_s, f"step {step} of {job_id}")
