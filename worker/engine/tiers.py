"""Where an engine's adapters are before they are in the model's memory: the store, this machine's disk, host memory.

An adapter goes up as it is asked for and down as others need the room; in the store it is always. What was deleted
leaves every tier, as the records tell.
"""

from collections.abc import Iterable
from pathlib import Path

from core.blobs import BlobStore
from core.effects import Effect, Ensemble
from core.model import RoutedModel
from core.records import adapters
from core.records.database import Database
from core.settings import Settings
from worker.engine.engine import Engine
from worker.engine.host_memory import HostMemory
from worker.engine.residency import loader


class Tiers:
    """All below the device. Where the device has no memory of its own, there is no host tier."""

    def __init__(self, settings: Settings, store: BlobStore, model: RoutedModel) -> None:
        self._folder: Path = settings.cache_dir / "adapters"
        load = loader(store, self._folder, model.resident, disk_bytes=settings.adapter_disk_bytes)
        size = 0 if model.device.type == "cpu" else settings.adapter_host_bytes
        self._host = HostMemory(load, device=model.device, memory_bytes=size) if size else None
        self._load = self._host or load

    def load(self, digest: str) -> Effect | Ensemble:
        """The serving form on the device, from the highest tier that holds it. Called in threads."""
        return self._load(digest)

    def tier(self, digest: str) -> str:
        """Where an adapter is that is not on the device."""
        if self._host and self._host.has(digest):
            return "host"
        return "disk" if (self._folder / f"{digest}.zip").exists() else "store"

    def names(self) -> set[str]:
        """The digests of all that is on this machine."""
        held = self._host.names() if self._host else []
        return {*held, *(path.stem for path in self._folder.glob("*.zip"))}

    def forget(self, digests: Iterable[str]) -> None:
        """Adapters that were deleted: they leave host memory and disk."""
        gone = list(digests)
        if self._host:
            self._host.forget(gone)
        for digest in gone:
            (self._folder / f"{digest}.zip").unlink(missing_ok=True)


def forget_deleted(db: Database, engine: Engine, tiers: Tiers) -> list[str]:
    """Free what was deleted since, wherever it is on this machine: its digests."""
    known = tiers.names().union(engine.adapters())
    with db.session() as session:
        gone = adapters.deleted(session, known)
    if gone:
        engine.forget(gone)
        tiers.forget(gone)
    return gone
