"""The trainer child's outside: one assignment in, reports out, an exit code. Knows no database and holds no secrets.

Everything heavy is imported only once the leash is on: from its first moments this process dies with its supervisor,
and takes SIGTERM for a wish to stop at a checkpoint.
"""

import os
import signal
import sys
import threading
from typing import NoReturn

from core.specs.assignment import ORPHANED, Assignment, Report

STDIN, STDOUT, STDERR = 0, 1, 2


def main() -> NoReturn:
    """Runs the assignment on standard input and exits with one of the codes of core/specs/assignment.py."""
    drain = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: drain.set())
    reports = _claim_stdout()
    assignment = Assignment.model_validate_json(_first_line())
    threading.Thread(target=_die_with_supervisor, name="leash", daemon=True).start()
    # cuBLAS sums in one and the same order only with a workspace of fixed size, and reads this when it is loaded.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from worker.outcome import outcome  # noqa: PLC0415 - torch takes seconds to import; see the head of this file

    sys.exit(outcome(assignment, say=lambda report: _say(reports, report), drain=drain))


def _claim_stdout() -> int:
    """A private way to the supervisor; whatever else this process prints goes to its log from now on."""
    reports = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    return reports


def _say(reports: int, report: Report) -> None:
    line = report.model_dump_json().encode() + b"\n"
    try:
        while line:
            line = line[os.write(reports, line) :]
    except BrokenPipeError:
        os._exit(ORPHANED)


def _first_line() -> bytes:
    # Read without a buffer: what came behind the line would be lost to the leash.
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(STDIN, 1 << 16)
        if not chunk:
            os._exit(ORPHANED)
        line += chunk
    return line


def _die_with_supervisor() -> None:
    """Waits for the end of standard input, which is the end of the supervisor, and of this process at once."""
    while os.read(STDIN, 1 << 10):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
