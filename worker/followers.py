"""The processes that follow a trainer child, one for each further device of its jobs: started, watched, dismissed.

They die with the child, which is their supervisor as ours is its own, and it dies with any of them: the job is then
taken up again from its newest checkpoint, as after any other death.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

from core.specs.assignment import CRASHED, OUT_OF_MEMORY
from worker.place import Place

LEASH = Path(__file__).with_name("leash.py")
ROOT = Path(__file__).parents[1]
STDERR = 2


class Followers:
    """Of the process that makes it, in its main thread: whoever's leash is held by a thread dies with that thread."""

    def __init__(self, leader: Place) -> None:
        self._is_dismissed = False
        self._processes = [self._started(leader, rank) for rank in range(1, leader.size)]
        for rank, process in enumerate(self._processes, start=1):
            threading.Thread(target=self._watch, args=(rank, process), name=f"follower-{rank}", daemon=True).start()

    def dismissed(self) -> None:
        """They were told to leave, so from now on their deaths are in order."""
        self._is_dismissed = True

    def _started(self, leader: Place, rank: int) -> "subprocess.Popen[bytes]":
        place = Place(rank, leader.size, rank, leader.at)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), sys.executable, "-m", "worker.following"],
            stdin=subprocess.PIPE,  # never written to: its end is our end
            stdout=STDERR,  # reports are ours alone
            cwd=ROOT,
            env=os.environ | place.environment,
        )

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if self._is_dismissed:
            return
        # Whatever this process waits for will not come.
        sys.stderr.write(f"process {rank} of the team ended with {code}: so does this one\n")
        sys.stderr.flush()
        os._exit(OUT_OF_MEMORY if code == OUT_OF_MEMORY else CRASHED)
