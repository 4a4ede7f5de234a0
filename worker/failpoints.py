"""Places where a test may kill a process of ours. Without GRAFT_TEST=1 nothing here ever does anything.

GRAFT_CRASH_AT names the points, with commas between them: "step:7" kills every attempt that reaches step 7,
"step:7@1" only the attempt of lease epoch 1, so that the next one gets through.
"""

import os
import signal


def reached(point: str, lease_epoch: int) -> None:
    """Kills this very process, as kill -9 does, if a test asked for it here."""
    if os.environ.get("GRAFT_TEST") != "1":
        return
    if {point, f"{point}@{lease_epoch}"} & set(os.environ.get("GRAFT_CRASH_AT", "").split(",")):
        os.kill(os.getpid(), signal.SIGKILL)
