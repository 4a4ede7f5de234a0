"""Says every few seconds that this worker lives, so that /readyz and the dashboard can tell. Knows nothing of jobs."""

import threading
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

log = structlog.get_logger()

BEAT_S = 2.0


class Pulse:
    """Calls say() every BEAT_S in a thread of its own, whatever the database does."""

    def __init__(self, say: Callable[[], None], beat_s: float = BEAT_S) -> None:
        self._say = say
        self._beat_s = beat_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Say it for the first time, soon."""
        self._thread.start()

    def stop(self) -> None:
        """Say it no more. Idempotent."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(self._beat_s)

    def _run(self) -> None:
        while True:
            try:
                self._say()
            except SQLAlchemyError as error:
                log.warning("presence.unsaid", error=type(error).__name__)
            if self._is_over.wait(self._beat_s):
                return
