"""What happened to a job, as it is written down: events are added, never altered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import insert
from sqlalchemy.orm import Session

from core.records.database import clock
from core.records.tables import JobEvent


@dataclass(frozen=True)
class Event:
    """One thing that happened. kind is for machines (claimed, step, validation, …), message for people.

    data of a metrics event has OpenAI's names: step, total_steps, train_loss, valid_loss, …
    """

    kind: str
    message: str
    type: Literal["message", "metrics"] = "message"
    level: Literal["info", "warn", "error"] = "info"
    step: int | None = None
    data: Mapping[str, Any] | None = None


def append(session: Session, job_id: str, lease_epoch: int, events: Iterable[Event]) -> None:
    """Write events in their order. The caller holds the job's row, and has made sure that this epoch may speak."""
    now = clock(session)
    rows = [
        {
            "job_id": job_id,
            "lease_epoch": lease_epoch,
            "level": event.level,
            "type": event.type,
            "kind": event.kind,
            "message": event.message,
            "step": event.step,
            "event_data": None if event.data is None else dict(event.data),
            "created_at": now,
        }
        for event in events
    ]
    if rows:
        session.execute(insert(JobEvent), rows)
