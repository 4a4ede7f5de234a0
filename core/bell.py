"""The bell: how a worker hears at once that a job waits. It may be lost, doubled or forged: the job's row is the truth.

The one place that says how Celery is spoken to, so that who rings and who listens agree. Knows no table and no job.
"""

from celery import Celery
from kombu.exceptions import OperationalError

from core.settings import Settings

TASK = "graft.run_job"
QUEUE = "train"
EXPIRES_S = 600  # a bell older than this is noise: the sweeper has rung again since

# One reader per device takes a bell only when it is free, so that the others stay in the queue for other workers.
_SETTINGS = {
    "task_acks_late": False,
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    "task_ignore_result": True,
    "result_backend": None,
    "accept_content": ["json"],
    "task_serializer": "json",
    "task_publish_retry": False,
    "task_time_limit": None,
    "task_default_queue": QUEUE,
    "task_create_missing_queues": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "worker_send_task_events": False,
    "worker_soft_shutdown_timeout": 0,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "enable_utc": True,
    "broker_transport_options": {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "max_retries": 0,  # a ringer never waits for a broker that is away; a worker's own reconnection is set above
        "global_keyprefix": "graft:",
    },
}


def celery_app(settings: Settings) -> Celery:
    """A Celery that speaks to this installation's broker. Connects to nothing until it is used."""
    app = Celery("graft", broker=settings.celery_broker, set_as_current=False)
    app.conf.update(_SETTINGS)
    return app


class Bell:
    """Rings for one job. Safe in any thread; blocks a few seconds at most, so not for an event loop."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring(self, job_id: str) -> bool:
        """False where the broker does not answer: the sweeper or a polling worker finds the job all the same."""
        try:
            self._app.send_task(TASK, args=[job_id], queue=QUEUE, expires=EXPIRES_S, retry=False, ignore_result=True)
        except (OperationalError, OSError):
            return False
        return True
