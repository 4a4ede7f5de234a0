"""The queue as the front end sees it: a bell, and whether it would sound. The only file here that knows Celery."""

import structlog
from kombu.exceptions import OperationalError

from core.bell import Bell, celery_app
from core.settings import Settings

log = structlog.get_logger()

TIMEOUT_S = 2.0


class Queue:
    """Blocking, for at most a few seconds: call it in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._celery = celery_app(settings)
        self._bell = Bell(self._celery)

    def ring(self, job_id: str) -> bool:
        """Whether the broker took it. A broker that is away fails nothing: the sweeper rings again."""
        is_heard = self._bell.ring(job_id)
        if not is_heard:
            log.warning("bell.lost", job_id=job_id)
        return is_heard

    def is_up(self) -> bool:
        """Whether the broker answers."""
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=TIMEOUT_S)
                connection.default_channel.client.ping()
        except (OperationalError, OSError):
            return False
        return True

    def close(self) -> None:
        """Lets the broker's connections go."""
        self._celery.close()
