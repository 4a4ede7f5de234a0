"""Brings the whole service up on one machine, keeps it up, and takes it down: what `make run` does.

Its children share nothing with it but the environment; it dies last, and they die with it.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from sqlalchemy.exc import OperationalError

from api import processes
from api.processes import TURN_S, House
from core.records import accounts, sessions
from core.records.database import Database
from core.settings import Settings

SAME_SIGNAL_S = 0.5  # make, timeout and a terminal may each pass on the same request to stop
PORT_FREE_WITHIN_S = 3.0  # a service killed a moment ago may hold its port still
ASK_READY_EVERY_S = 0.3


class Refusal(Exception):
    """Why the service cannot come up here; the message is for the person at the terminal."""


class StopRequests:
    """Counts the requests to stop: the first is to stop in order, the second to stop at once."""

    def __init__(self) -> None:
        self.count = 0
        self._last_at = -SAME_SIGNAL_S
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._heed)

    def is_asked(self) -> bool:
        """Whether to stop."""
        return self.count > 0

    def is_urgent(self) -> bool:
        """Whether to kill."""
        return self.count > 1

    def _heed(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last_at >= SAME_SIGNAL_S:
            self.count += 1
            self._last_at = now


def up(settings: Settings, console: Console) -> None:
    """Start everything, say where it is, and stay until asked to stop. Raises Refusal."""
    began_at = time.monotonic()
    requests = StopRequests()
    with only_here(settings.data_dir.resolve()):
        await_free_port(settings)
        house = build(settings, lambda text: say(console, text))
        try:
            start(house, settings, console)
            if await_ready(house, settings, console, requests):
                say(console, welcome(settings, time.monotonic() - began_at, sign_in_link(settings)))
            while not requests.is_asked():
                house.watch()
                time.sleep(TURN_S)
        finally:
            say(console, "Stopping … (once more: at once)")
            house.stop(requests.is_urgent)
            say(console, f"Stopped. The data stay in {settings.data_dir.resolve()}")


def build(settings: Settings, tell: Callable[[str], None]) -> House:
    """The processes that this machine needs, in stages. Raises Refusal."""
    try:
        broker = [] if settings.redis_url else [processes.valkey(settings)]
    except ValueError as fault:
        raise Refusal(str(fault)) from fault
    data_dir = settings.data_dir.resolve()
    (data_dir / "valkey").mkdir(mode=0o700, exist_ok=True)
    return House(
        (broker, [processes.api(settings)], [processes.trainer(settings), *processes.engines(settings)]),
        logs=data_dir / "logs",
        environment={**os.environ, "GRAFT_DATA_DIR": str(data_dir)},
        tell=tell,
    )


def start(house: House, settings: Settings, console: Console) -> None:
    """Start all stages; the database is at its present revision before anything that reads it."""
    house.start(0)
    prepare(settings, console)
    house.start(1)
    house.start(2)


def prepare(settings: Settings, console: Console) -> None:
    """Bring the database to its present revision and make the first key, which is shown this once. Raises Refusal."""
    try:
        with contextlib.closing(Database(settings.database)) as database:
            database.migrate()
            key = accounts.ensure_first_key(database, settings.data_dir)
    except (OperationalError, ValueError) as fault:
        raise Refusal(f"The database (GRAFT_DATABASE_URL) cannot be used: {fault}") from fault
    if key:
        say(console, f"The administrator's key, shown once and kept in {key_file(settings)}:\n  {key}")


def await_ready(house: House, settings: Settings, console: Console, requests: StopRequests) -> bool:
    """Watch over the house until /readyz answers 200, and say what it waits for; False when asked to stop before."""
    began_at, asked_at, said = time.monotonic(), 0.0, ""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        spinner = Spinner("dots")
        while not requests.is_asked():
            house.watch()
            now = time.monotonic()
            if now - asked_at >= ASK_READY_EVERY_S:
                missing, asked_at = missing_parts(settings), now
                if not missing:
                    return True
            text = f"Starting: waiting for {', '.join(missing)}"
            if console.is_terminal:
                spinner.update(text=f"{text} ({now - began_at:.0f} s)")
                live.update(spinner, refresh=True)
            elif text != said:
                say(console, text)
                said = text
            time.sleep(TURN_S)
    return False


def missing_parts(settings: Settings) -> list[str]:
    """What /readyz says is not ready yet; the API itself while it does not answer."""
    try:
        with urllib.request.urlopen(f"{address(settings)}/readyz", timeout=5) as answer:  # noqa: S310  # http, ours
            return [] if answer.status == 200 else ["api"]  # noqa: PLR2004  # OK
    except urllib.error.HTTPError as answer:
        with contextlib.suppress(ValueError, AttributeError):
            checks = json.load(answer).get("checks", {})
            return [name for name, is_well in checks.items() if not is_well] or ["api"]
        return ["api"]
    except OSError:
        return ["api"]


@contextlib.contextmanager
def only_here(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for one service. Raises Refusal where another has it, or where it cannot be made."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        raise Refusal(f"{data_dir} cannot be used: {fault.strerror}. Set GRAFT_DATA_DIR to another folder.") from fault
    with os.fdopen(lock, "r+") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(
                f"The service is up already on {data_dir} (process {holder.read().strip() or 'unknown'}). "
                "Stop that one, or set GRAFT_DATA_DIR (and GRAFT_PORT) for a second one."
            ) from None
        holder.truncate(0)
        holder.write(str(os.getpid()))
        holder.flush()
        yield


def await_free_port(settings: Settings) -> None:
    """Return once nothing listens on the API's port. Raises Refusal where something goes on doing so."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    patience = time.monotonic() + PORT_FREE_WITHIN_S
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, settings.port))
            except OSError as fault:
                if time.monotonic() >= patience:
                    raise Refusal(
                        f"{settings.host}:{settings.port} cannot be listened on: {fault.strerror}. "
                        "Set GRAFT_PORT (or GRAFT_HOST) to another one."
                    ) from fault
            else:
                return
        time.sleep(TURN_S)


def address(settings: Settings) -> str:
    """Where this machine reaches its API."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # read, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def key_file(settings: Settings) -> Path:
    """Where the first key is kept."""
    return settings.data_dir.resolve() / "admin.key"


def sign_in_link(settings: Settings) -> str:
    """Where a browser is signed in, once, within an hour. What follows the # stays in the browser: no log sees it."""
    with contextlib.closing(Database(settings.database)) as database:
        code = sessions.offer_code(database)
    place = f"{settings.public_url or address(settings)}/admin"
    return f"{place}/sign-in#{code}" if code else place


def welcome(settings: Settings, seconds: float, link: str) -> str:
    """What a person wants to know once it is up."""
    key = f'"Authorization: Bearer $(cat {key_file(settings)})"'
    question = {"model": settings.default_base_model, "messages": [{"role": "user", "content": "Name a colour."}]}
    return f"""Ready in {seconds:.1f} s
  API    {address(settings)}/v1
  key    {key_file(settings)}
  model  {settings.default_base_model}
  logs   {settings.data_dir.resolve() / "logs"}
The dashboard, in your browser (this link signs in once, within an hour):
  {link}
Try it:
  curl {address(settings)}/v1/chat/completions -H {key} \\
    -H 'Content-Type: application/json' -d '{json.dumps(question)}'
Ctrl-C stops it."""


def say(console: Console, text: str) -> None:
    """Print, untouched; a terminal that went away is no reason to leave processes behind."""
    with contextlib.suppress(OSError):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
