"""A process that follows a trainer child on a device of its own: the base model and the child's orders, nothing else.

It reads no data, keeps no checkpoint and reports to nobody but its leader. It lives as long as that does.
"""

import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

from pydantic import Field, TypeAdapter

from core.orders import Dismissed
from core.specs.assignment import CRASHED, FINISHED, ORPHANED, OUT_OF_MEMORY, Assignment
from worker.allocator import settle_for_training
from worker.place import Place

if TYPE_CHECKING:
    from core.settings import Settings
    from core.team import Team
    from worker.opened import Opened

STDIN = 0
FIRST: TypeAdapter[Assignment | Dismissed] = TypeAdapter(Annotated[Assignment | Dismissed, Field(discriminator="kind")])


def main() -> NoReturn:
    """As our own trainer child starts it: the end of standard input is the end of that child."""
    settle_for_training()
    threading.Thread(target=_cling, name="leash", daemon=True).start()
    place = Place.of(os.environ)
    assert place is not None
    run(place)


def run(place: Place) -> NoReturn:
    """Follows until dismissed, and exits."""
    # It is the leader's to stop at a checkpoint; until then it needs everyone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in the leader
    from core.settings import Settings  # noqa: PLC0415 - as in the leader, nothing heavy before the leash is on
    from core.shortage import is_lack_of_memory  # noqa: PLC0415
    from core.together import follow  # noqa: PLC0415

    settings = Settings()
    team = place.meet(settings)
    opened = _opened(team, settings)
    if opened is not None:
        try:
            follow(opened.model, team)
        except Exception as error:  # noqa: BLE001 - the leader may be waiting for this process: it ends here and now
            traceback.print_exc()
            os._exit(OUT_OF_MEMORY if is_lack_of_memory(error) else CRASHED)
    team.leave()
    sys.exit(FINISHED)


def _opened(team: "Team", settings: "Settings") -> "Opened | None":
    """The base model of the first job whose base can be opened; None where no job came to that."""
    from worker.opened import Opened  # noqa: PLC0415 - as above

    while isinstance(first := FIRST.validate_json(team.hear()), Assignment):
        try:
            return Opened.with_team(first, settings, team)
        except Exception:  # noqa: BLE001 - the leader was told, and says what comes of it
            traceback.print_exc()
    return None


def _cling() -> NoReturn:
    while os.read(STDIN, 1 << 16):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
