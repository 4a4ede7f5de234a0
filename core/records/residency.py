"""Where adapters are resident: what living engines tell of the adapters that they were asked for most."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.records.presences import alive


@dataclass(frozen=True)
class Holding:
    """An engine that keeps an adapter. tier: device, host or disk."""

    engine_id: str
    tier: str
    requests: int


def holdings(session: Session) -> dict[str, list[Holding]]:
    """By the adapter's sha256."""
    found = dict[str, list[Holding]]()
    for engine in alive(session, "engine"):
        told = engine.details.get("status", {}).get("by_adapter", {})
        for name, counts in told.items():
            if counts.get("tier"):
                found.setdefault(name, []).append(Holding(engine.id, counts["tier"], counts.get("requests", 0)))
    return found
