"""Places where a test may kill a process of ours. Without GRAFT_TEST=1 nothing here ever does anything.

GRAFT_CRASH_AT names the points, with commas between them: "step:7" kills the job's first attempt when it reaches step
7, "step:7@3" the attempt of lease epoch 3, "step:7@*" every one.
"""

import os
import signal


def reached(point: str, lease_epoch: int) -> None:
    """Kills this very process, as kill -9 does, if a test asked for it here."""
    if os.environ.get("GRAFT_TEST") != "1":
        return
    asked = os.environ.get("GRAFT_CRASH_AT", "").split(",")
    if f"{point}@{lease_epoch}" in asked or f"{point}@*" in asked or (lease_epoch == 1 and point in asked):
        os.kill(os.getpid(), signal.SIGKILL)
