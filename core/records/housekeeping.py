"""The housekeeper: removes, once an hour, what the settings say is kept no longer. One process at a time does it.

Its round may be long where there is much to remove, so it has a thread of its own beside the sweeper's; it works in
small steps, and stops between two of them.
"""

import os
import platform
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from obstore.exceptions import BaseError
from sqlalchemy.exc import SQLAlchemyError

from core.blob import BlobStore
from core.records import offices
from core.records.collecting import Collected, collecting
from core.records.database import Database
from core.records.forgetting import forgetting
from core.settings import Settings

log = structlog.get_logger()

OFFICE = "housekeeper"
EVERY_S = 3600.0  # from the beginning of one round to that of the next, whichever process begins it
LOOK_S = 60.0  # how often a process asks whether it is time
DAY_S, HOUR_S = 86_400.0, 3600.0


@dataclass(frozen=True)
class Kept:
    """What one round did."""

    events: int
    blobs: Collected


class Housekeeper:
    """Keeps house in a thread of its own. tell hears what each round did, for whoever counts."""

    def __init__(
        self, db: Database, store: BlobStore, settings: Settings, *, tell: Callable[[Kept], None] = lambda _: None
    ) -> None:
        self._db, self._store, self._settings, self._tell = db, store, settings, tell
        self._owner = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Look for the first time, soon."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step under way. Idempotent; the housekeeper cannot be started again."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> Kept | None:
        """Keep house once, where the last round of any process began EVERY_S ago; what was done."""
        with self._db.writing() as session:
            if not offices.take(session, OFFICE, self._owner, EVERY_S, may_renew=False):
                return None
        kept = Kept(self._forget(), self._collect())
        if kept != Kept(0, Collected()):
            log.info("housekeeping.done", events=kept.events, **vars(kept.blobs))
        self._tell(kept)
        return kept

    def _forget(self) -> int:
        days, forgotten = self._settings.event_retention_days, 0
        if days:
            for some in forgetting(self._db, kept_s=days * DAY_S):
                forgotten += some
                if self._is_over.is_set():
                    break
        return forgotten

    def _collect(self) -> Collected:
        kept_s, collected = self._settings.deleted_retention_hours * HOUR_S, Collected()
        for some in collecting(self._db, self._store, kept_s=kept_s):
            collected += some
            if self._is_over.is_set():
                break
        return collected

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self.round()
            except (SQLAlchemyError, OSError, BaseError) as error:
                # A database or a store that is away costs this round. What was removed stays so, the rest waits.
                log.warning("housekeeping.failed", error=type(error).__name__)
            self._is_over.wait(LOOK_S)
