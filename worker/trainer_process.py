"""The trainer child's outside: orders in, reports out, an exit code. Knows no database and holds no secrets.

Everything heavy is imported only once the leash is on: from its first moments this process dies with its supervisor,
and takes SIGTERM for a wish to stop at a checkpoint. Where a job has several devices it leads a process on each
further one (worker/followers.py); under torchrun it is the process of rank 0 that does all this, the others follow.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from core.specs.assignment import ORDER, ORPHANED, OUT_OF_MEMORY, Assignment, Order, Told
from worker.allocator import settle_for_training
from worker.place import Place

if TYPE_CHECKING:
    from core.settings import Settings
    from core.team import Team
    from worker.company import Company
    from worker.followers import Followers

STDIN, STDOUT, STDERR = 0, 1, 2


def main() -> NoReturn:
    """Runs the assignments on standard input and exits with one of the codes of core/specs/assignment.py."""
    settle_for_training()
    place = Place.of(os.environ)
    if place is not None and place.rank:
        from worker import following  # noqa: PLC0415 - another process than this one

        following.run(place)
    drain = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: drain.set())
    reports = _Reports()
    lines = _lines()
    first = Assignment.model_validate_json(next(lines))
    orders: queue.Queue[Order] = queue.Queue()
    threading.Thread(target=_listen, args=(lines, orders), name="leash", daemon=True).start()
    # cuBLAS sums in one and the same order only with a workspace of fixed size, and reads this when it is loaded.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from core.settings import Settings  # noqa: PLC0415 - nor does it know of secrets before it is on the leash

    settings = Settings()
    place, followers = _led(place, first, settings)
    from worker.company import Company  # noqa: PLC0415 - torch takes seconds to import; see the head of this file

    team = None if place is None else place.meet(settings)
    company = Company(settings, reports.tell, drain, team)
    threading.Thread(target=_obey, args=(orders, company), name="orders", daemon=True).start()
    code = company.go(first)
    if team is not None and code == OUT_OF_MEMORY:
        # The others may wait in the midst of a layer, where they hear nothing: they end with this process.
        sys.stderr.flush()
        os._exit(code)
    _dismiss(team, followers)
    sys.exit(code)


def _led(place: Place | None, first: Assignment, settings: "Settings") -> "tuple[Place | None, Followers | None]":
    """The place of this process, and those who follow it where torchrun has not started them already."""
    if place is not None or settings.devices_per_job == 1:
        return place, None
    from worker.followers import Followers  # noqa: PLC0415 - only where there are any

    first.work_dir.mkdir(parents=True, exist_ok=True)
    meeting = first.work_dir / f"team-e{first.lease_epoch}-{os.getpid()}"
    leader = Place(0, settings.devices_per_job, 0, meeting)
    return leader, Followers(leader)


def _dismiss(team: "Team | None", followers: "Followers | None") -> None:
    if followers is not None:
        followers.dismissed()
    if team is not None:
        from core.together import dismiss  # noqa: PLC0415 - loaded long since

        dismiss(team)


class _Reports:
    """A private way to the supervisor; whatever else this process prints goes to its log from now on."""

    def __init__(self) -> None:
        self._file = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
        self._writing = threading.Lock()

    def tell(self, told: Told) -> None:
        """Whole lines, whichever thread they come from."""
        line = told.model_dump_json().encode() + b"\n"
        try:
            with self._writing:
                while line:
                    line = line[os.write(self._file, line) :]
        except BrokenPipeError:
            os._exit(ORPHANED)


def _lines() -> Iterator[bytes]:
    """Those of standard input. Its end is the end of the supervisor, and of this process at once."""
    kept = b""
    while chunk := os.read(STDIN, 1 << 16):
        *whole, kept = (kept + chunk).split(b"\n")
        yield from whole
    os._exit(ORPHANED)


def _listen(lines: Iterator[bytes], orders: "queue.Queue[Order]") -> None:
    for line in lines:
        orders.put(ORDER.validate_json(line))


def _obey(orders: "queue.Queue[Order]", company: "Company") -> NoReturn:
    while True:
        company.take(orders.get())


if __name__ == "__main__":
    main()
