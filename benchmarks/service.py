"""A running service to measure, and a job followed to its end: what the scripts beside this file share."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from core.settings import Settings

READY_WITHIN_S = 300.0
console = Console()


@contextmanager
def service(settings: Settings) -> Iterator[str]:
    """The address of a running service: the one already up on this port, or one started here and stopped at the end."""
    address = f"http://{settings.host}:{settings.port}"
    if is_ready(address):
        console.print(f"Using the service that is up at {address}")
        yield address
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    log = settings.data_dir / "demo-up.log"
    with log.open("wb") as out:
        up = subprocess.Popen([sys.executable, "-m", "api.cli", "up"], stdout=out, stderr=out, start_new_session=True)
    try:
        await_ready(address, up, log)
        yield address
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=180)
        console.print("The service is stopped; its data stay in " + str(settings.data_dir))


def is_ready(address: str) -> bool:
    """Whether every part of the service answers."""
    try:
        return httpx.get(f"{address}/readyz", timeout=5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def await_ready(address: str, up: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the service is ready; raise with its last words when it is not to be."""
    until = time.monotonic() + READY_WITHIN_S
    with console.status("Starting API, queue, trainer and engine (the first start converts the base model) …"):
        while time.monotonic() < until:
            if is_ready(address):
                return
            if up.poll() is not None:
                raise RuntimeError(f"the service ended with status {up.returncode}:\n{tail(log)}")
            time.sleep(0.5)
    raise RuntimeError(f"the service was not ready within {READY_WITHIN_S:.0f} s:\n{tail(log)}")


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def progress() -> Progress:
    """Bars with a word on how it goes. Model names have colons, which are no emoji: hence no markup."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.fields[says]}", markup=False),
        TimeElapsedColumn(),
        console=console,
    )


def follow(client: OpenAI, job: FineTuningJob, bar: Progress, line: TaskID) -> FineTuningJob:
    """Show a job's steps until it ends; raise unless it succeeded."""
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        events = client.fine_tuning.jobs.list_events(job.id, limit=10).data
        steps = [e.data for e in events if e.type == "metrics" and isinstance(e.data, dict) and "train_loss" in e.data]
        if steps:
            last = steps[0]
            bar.update(line, total=last["total_steps"], completed=last["step"], says=f"loss {last['train_loss']:.3f}")
    if job.status != "succeeded":
        raise RuntimeError(f"job {job.id} {job.status}: {job.error}")
    bar.update(line, says=f"done · {job.fine_tuned_model}")
    return job
