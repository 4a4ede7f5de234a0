"""Workers as they are told of: their device, what they are at, and how they are."""

from typing import Any

from api import shapes
from core.records.workers import Worker

_FOR_ADMINISTRATORS = ("owner", "pid", "url")


def shape_of(one: Worker, *, is_admin: bool) -> shapes.Shape:
    """A worker object. Where it runs is an administrator's to know."""
    row = one.presence
    details: dict[str, Any] = {**row.details, "url": row.url}
    status = {name: value for name, value in details.pop("status", {}).items() if name != "by_adapter"}
    device = details.pop("device", None)
    if not isinstance(device, dict):
        device = {"kind": device, "memory_bytes": details.get("memory_bytes")}
    return {
        "id": row.id,
        "object": "worker",
        "role": row.role,
        "state": _state(one, status),
        "base_model": row.base_model,
        "started_at": int(row.started_at),
        "heartbeat_age_s": round(one.silent_s, 1),
        "drain_requested_at": shapes.whole(row.drain_requested_at),
        "device": device,
        "jobs": list(one.job_ids),
        "n_jobs": one.n_jobs,
        "status": status or None,
        "details": {name: details[name] for name in details if is_admin or name not in _FOR_ADMINISTRATORS},
    }


def _state(one: Worker, status: dict[str, Any]) -> str:
    """starting, ready, busy, draining or drained."""
    is_at_work = bool(one.n_jobs or status.get("running") or status.get("waiting"))
    if one.presence.drain_requested_at is not None:
        return "draining" if is_at_work else "drained"
    if not one.presence.is_ready:
        return "draining" if status.get("is_draining") else "starting"
    return "busy" if is_at_work else "ready"
