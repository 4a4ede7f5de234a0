"""The trainer's Celery worker: it hears the bell, and nothing more.

celery -A worker.celery_app worker -P threads -c 1 -Q train --without-gossip --without-mingle
"""

import os
import platform
import secrets

import structlog
from celery import Celery
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down
from kombu.exceptions import OperationalError

from core.bell import QUEUE, TASK, Bell, celery_app
from core.blobs import open_store
from core.records import presences
from core.records.database import Database
from core.records.tables import new_id
from core.settings import Settings
from worker.presence import Pulse
from worker.room import device_of
from worker.seat import Seat
from worker.training import Workshop

log = structlog.get_logger()


class Station:
    """All that lives as long as the worker process: its database, its seat, its pulse."""

    def __init__(self, settings: Settings, celery: Celery, name: str) -> None:
        """name: the worker's own among those that hear the bell."""
        self._settings, self._celery, self._name = settings, celery, name
        self._db = Database(settings.database)
        self._id = new_id("trainer-")
        self._owner = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.seat = Seat(Workshop(settings, self._db, open_store(settings), Bell(celery).ring), self._owner)
        self._device = device_of(settings)
        self._pulse = Pulse(self._say)

    def start(self) -> None:
        """Be seen, and look for work, whether or not the broker is there."""
        self._pulse.start()
        self.seat.start()

    def stop(self) -> None:
        """Leave, once the job at hand is drained."""
        self.seat.close()
        self.seat.join(self._settings.drain_s)
        self._pulse.stop()
        presences.leave(self._db, self._id)
        self._db.close()

    def _say(self) -> None:
        is_leaving = self.seat.is_closed
        details = {
            "is_leaving": is_leaving,
            "is_busy": self.seat.is_taken,
            "owner": self._owner,
            "pid": os.getpid(),
            "device": self._device,
        }
        is_to_drain = presences.beat(self._db, self._id, role="trainer", is_ready=not is_leaving, details=details)
        if is_to_drain and not is_leaving:
            self._drain()

    def _drain(self) -> None:
        """As an administrator asked: stay, idle. A bell heard here would be lost to the others, so hear none."""
        log.info("worker.draining")
        self.seat.close()
        try:
            self._celery.control.cancel_consumer(QUEUE, destination=[self._name])
        except (OperationalError, OSError) as error:  # the bells that are lost to it are rung again
            log.warning("broker.away", error=type(error).__name__)


settings = Settings()
app = celery_app(settings)
_stations: list[Station] = []  # the one of this process, once it is a worker


def run_job(job_id: object = None, *_: object, **__: object) -> None:
    """A bell. Anyone who reaches the broker can ring it, with anything: what is done is what the rows say."""
    for station in _stations:
        station.seat.answer(job_id)


def _begin(sender: str = "", **_: object) -> None:
    _stations.append(Station(settings, app, sender))
    _stations[0].start()


def _close(**_: object) -> None:
    for station in _stations:
        station.seat.close()


def _end(**_: object) -> None:
    while _stations:
        _stations.pop().stop()


app.task(name=TASK)(run_job)
celeryd_after_setup.connect(_begin)
worker_shutting_down.connect(_close)
worker_shutdown.connect(_end)
