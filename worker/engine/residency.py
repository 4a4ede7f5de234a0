"""Adapters on their way from the blob store to the model's memory, and how long they stay. Knows no rows, only wishes.

Everything is keyed by the sha256 of the adapter's zip: a name may come to mean something else, a digest cannot. Loading
happens in threads; all else in the step loop, which alone calls this. Memory is bounded in bytes; what is pinned stays,
the least recently wished-for goes first. At most LOADS adapters exist beyond the bound: those that found no room.
"""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from core.adapter_files import read_zip
from core.blobs import BlobStore, CorruptBlob, MissingBlob, blob_of
from core.effects import Effect, Ensemble
from core.routing import tensors_of
from core.specs.generation import FrameError
from worker.engine.scheduler import Readiness

log = structlog.get_logger()

LOADS = 2  # at once
REMEMBERED = 1024  # corrupt digests
LARGEST_WEIGHT = 1e4  # finite, but so large that products with a neighbour's input may not be
UNAVAILABLE = FrameError(
    code="adapter_unavailable", message="the adapter could not be fetched; try again", param="model", retryable=True
)
DAMAGED = FrameError(code="adapter_corrupt", message="the adapter's file in the store is damaged", param="model")
MISSING = FrameError(code="adapter_unavailable", message="the adapter's file is not in the store", param="model")


class CorruptAdapterError(Exception):
    """Content that can never be served on this base model. The message is for the customer."""


@dataclass(slots=True, eq=False)
class Resident:
    """An adapter in the model's memory."""

    effect: Effect | Ensemble
    size_bytes: int
    pins: int = 0


class Residency:
    """Which adapters are in memory, which are coming, and which never will."""

    def __init__(
        self,
        load: Callable[[str], Effect | Ensemble],
        *,
        memory_bytes: int,
        arrived: Callable[[], None],
        loaded: Callable[[str], None] = lambda _: None,
    ) -> None:
        """load: digest -> serving form, called in a thread. arrived: called in a thread after each load.

        loaded: called in turn() for each adapter that came.
        """
        self._load, self._memory_bytes, self._arrived, self._loaded = load, memory_bytes, arrived, loaded
        self._pool = ThreadPoolExecutor(LOADS, thread_name_prefix="adapter-load")
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently wished-for first
        self._loading: dict[str, Future[Effect | Ensemble]] = {}
        self._homeless: dict[str, Resident] = {}  # loaded, but without room
        self._corrupt: OrderedDict[str, FrameError] = OrderedDict()
        self._failed: dict[str, FrameError] = {}  # until the next turn: a later request may try again
        self._doomed: set[str] = set()  # deleted while they were worn
        self.loads = 0

    @property
    def size_bytes(self) -> int:
        """Of all adapters in memory."""
        return sum(r.size_bytes for r in self._residents.values())

    def names(self) -> tuple[list[str], list[str]]:
        """The digests in memory, and those on their way."""
        return list(self._residents), [*self._loading, *self._homeless]

    def has(self, digest: str) -> bool:
        """Whether it is in memory."""
        return digest in self._residents

    def forget(self, digests: Iterable[str]) -> None:
        """Adapters that were deleted: their memory is free now, or once the last row that wears one has ended."""
        for digest in digests:
            self._homeless.pop(digest, None)
            self._corrupt.pop(digest, None)
            resident = self._residents.get(digest)
            if resident is None:
                continue
            if resident.pins:
                self._doomed.add(digest)
            else:
                del self._residents[digest]

    def turn(self, wishes: Iterable[str]) -> None:
        """Once a step: house what arrived, begin loading what is wished for, the first wish first."""
        wanted = list(dict.fromkeys(wishes))
        self._failed.clear()
        for digest in [d for d, future in self._loading.items() if future.done()]:
            self._receive(digest, self._loading.pop(digest))
        for digest in [d for d in self._homeless if d not in wanted]:
            del self._homeless[digest]
        for rank, digest in enumerate(wanted):
            if digest in self._residents:
                self._residents.move_to_end(digest)
            elif digest in self._homeless:
                self._house(digest, wanted, rank)
            elif digest not in self._loading and digest not in self._corrupt and digest not in self._failed:
                self._begin(digest)

    def readiness(self, digest: str) -> Readiness:
        """For the scheduler."""
        if digest in self._residents:
            return Readiness.READY
        return Readiness.BLOCKED if digest in self._homeless else Readiness.LOADING

    def fault(self, digest: str) -> FrameError | None:
        """Why this adapter is not coming, after turn()."""
        return self._corrupt.get(digest) or self._failed.get(digest)

    def pin(self, digest: str) -> Effect | Ensemble:
        """The adapter, which stays until unpin(): once for each row that wears it. It must be READY."""
        resident = self._residents[digest]
        resident.pins += 1
        return resident.effect

    def unpin(self, digest: str) -> None:
        """One row less wears it."""
        resident = self._residents[digest]
        resident.pins -= 1
        self._residents.move_to_end(digest)
        if digest in self._doomed and not resident.pins:
            self._doomed.discard(digest)
            del self._residents[digest]

    def close(self) -> None:
        """Waits for no load."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, digest: str) -> None:
        if len(self._loading) + len(self._homeless) >= LOADS:
            return
        future = self._pool.submit(self._load, digest)
        self._loading[digest] = future
        future.add_done_callback(lambda _: self._arrived())

    def _receive(self, digest: str, future: Future[Effect | Ensemble]) -> None:
        self.loads += 1
        match future.exception():
            case None:
                effect = future.result()
                size_bytes = sum(t.numel() * t.element_size() for t in tensors_of(effect))
                if size_bytes > self._memory_bytes:
                    self._condemn(digest, f"the adapter's {size_bytes} bytes exceed the engine's adapter memory")
                    return
                self._loaded(digest)
                self._homeless[digest] = Resident(effect, size_bytes)
            case CorruptAdapterError() as error:
                self._condemn(digest, str(error))
            case MissingBlob():
                self._failed[digest] = MISSING
                log.warning("adapter.missing", sha256=digest)
            case CorruptBlob():
                self._failed[digest] = DAMAGED  # a store may heal, so this is not remembered
                log.error("adapter.damaged", sha256=digest)
            case error:
                self._failed[digest] = UNAVAILABLE
                log.error("adapter.load_failed", sha256=digest, exc_info=error)

    def _condemn(self, digest: str, message: str) -> None:
        self._corrupt[digest] = FrameError(code="adapter_corrupt", message=message, param="model")
        log.warning("adapter.corrupt", sha256=digest, reason=message)
        while len(self._corrupt) > REMEMBERED:
            self._corrupt.popitem(last=False)

    def _house(self, digest: str, wanted: Sequence[str], rank: int) -> None:
        """Make room by letting go of what nobody wears: what nobody waits for, then what later wishes wait for."""
        needed = self._homeless[digest].size_bytes + self.size_bytes - self._memory_bytes
        idle = [d for d, r in self._residents.items() if not r.pins]
        later = [d for d in reversed(wanted[rank + 1 :]) if d in idle]
        leaving = []
        for d in itertools.chain((d for d in idle if d not in wanted), later):
            if needed <= 0:
                break
            needed -= self._residents[d].size_bytes
            leaving.append(d)
        if needed > 0:
            return
        for d in leaving:
            del self._residents[d]
        self._residents[digest] = self._homeless.pop(digest)


def loader(
    store: BlobStore, folder: Path, fit: Callable[[Effect], Effect], *, disk_bytes: int | None = None
) -> Callable[[str], Effect | Ensemble]:
    """Digest -> serving form, by way of folder/<sha256>.zip. fit: checks against the base model and casts, once.

    disk_bytes: of the folder at most, beside the newest file. The zip that was opened longest ago goes first.
    """

    def load(digest: str) -> Effect | Ensemble:
        path = folder / f"{digest}.zip"
        if path.exists() and blob_of(path).sha256 == digest:
            path.touch()
        else:
            store.fetch(digest, path)
            if disk_bytes is not None:
                prune(folder, disk_bytes, keep=path)
        try:
            effect = read_sound(path)
            return Ensemble(tuple(map(fit, effect.members))) if isinstance(effect, Ensemble) else fit(effect)
        except ValueError as error:
            raise CorruptAdapterError(str(error)) from error

    return load


def prune(folder: Path, disk_bytes: int, *, keep: Path) -> None:
    """Remove the zips that were opened longest ago until the folder holds so many bytes, keep among them."""
    found = []
    for path in folder.glob("*.zip"):
        with contextlib.suppress(FileNotFoundError):  # another engine of this machine prunes too
            about = path.stat()
            found.append((about.st_mtime_ns, about.st_size, path))
    excess = sum(size for _, size, _ in found) - disk_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            excess -= size


def read_sound(path: Path) -> Effect | Ensemble:
    """The effect of an adapter's zip. Raises ValueError for what no row could wear beside others."""
    effect = read_zip(path)
    _refuse_huge(effect)
    return effect


def _refuse_huge(effect: Effect | Ensemble) -> None:
    """Rows of a batch share products whose foreign parts are masked: what overflows there would reach neighbours."""
    for tensor in tensors_of(effect):
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if not largest <= LARGEST_WEIGHT:
            raise ValueError(f"the adapter holds a weight of size {largest}; at most {LARGEST_WEIGHT} is served")
