"""Ties a command to the process that starts it, then becomes that command: it dies when its supervisor does.

Run by path, before anything heavy: python -I -S leash.py SUPERVISOR_PID COMMAND… A program of its own, because code
between fork and exec is not safe in a process with threads. Linux keeps the tie across exec and pulls it when the
*thread* that started the child ends; elsewhere the end of standard input has to do. Knows no other file.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(supervisor: int, command: list[str]) -> None:
    """Does not return. A supervisor that died before the tie was made is noticed, and nothing is started."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  # an argument list that our own supervisor wrote


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
