"""What a blob is, and what every store of them can. Knows no place where they lie.

A blob is published whole or not at all and never altered: its name is its content. So writing it twice is harmless, and
whoever reads it can tell whether it is right. Names are checked wherever they come in: no caller's text becomes a path.

A blob that seems to be nobody's is not removed at once but set aside, and removed for good only a good while later.
What lies aside is still there for every reader, and reading brings it back: so whoever set it aside may have been
mistaken, or overtaken by a writer of the same bytes, and nothing is lost. Collectors and writers need no lock for that.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

CHUNK = 1 << 20
LOOKS = 8  # for a blob that somebody sets aside each time that it is brought back
Found = TypeVar("Found")
SHA256 = re.compile(r"[0-9a-f]{64}")


class MissingBlob(LookupError):
    """No blob has this sha256."""


class CorruptBlob(ValueError):
    """The bytes in the store are not those that their name promises."""


@dataclass(frozen=True)
class Blob:
    """What is in the store."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Stored(Blob):
    """A blob as a store lists it. changed_at: written, set aside or brought back; seconds since 1970, its own clock."""

    changed_at: float


class BlobStore(Protocol):
    """Where bytes are kept. Every method may block; every sha256 that is not 64 hex digits raises ValueError."""

    def put(self, path: Path) -> Blob:
        """Publish a file's bytes, atomically and durably. The file stays where it is."""
        ...

    def put_bytes(self, content: bytes) -> Blob:
        """Publish bytes, atomically and durably."""
        ...

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from start up to but without end, in pieces. MissingBlob at once, not at the first piece."""
        ...

    def size(self, sha256: str) -> int:
        """In bytes. MissingBlob if it is not there."""
        ...

    def fetch(self, sha256: str, target: Path) -> Path:
        """Write the blob to target and return that. It appears whole and verified or, with CorruptBlob, not at all."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove a blob; nothing happens if it is not there. Only for blobs whose bytes are one writer's own."""
        ...

    def listed(self, *, is_aside: bool = False) -> Iterator[Stored]:
        """Every blob in its place or, with is_aside, that is set aside. What changes meanwhile may be in it or not."""
        ...

    def set_aside(self, sha256: str) -> None:
        """Take a blob from its place; whoever reads it brings it back. Nothing happens if it is not there."""
        ...

    def bring_back(self, sha256: str) -> bool:
        """Put what was set aside into its place; whether a blob is there now."""
        ...

    def drop(self, sha256: str) -> None:
        """Remove for good what was set aside; what is in its place stays. Nothing happens if it is not there."""
        ...

    def drop_unfinished(self, before: float) -> int:
        """Remove what writers left half done and last touched before then, in seconds since 1970; how many bytes."""
        ...


def place(sha256: str, *, is_aside: bool = False) -> str:
    """Where a blob lies below the store's root: blobs/ab/<sha256>, or aside/ab/<sha256>."""
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256[:80]!r} is not a sha256 in 64 small hex digits")
    return f"{'aside' if is_aside else 'blobs'}/{sha256[:2]}/{sha256}"


def sought(store: BlobStore, sha256: str, look: Callable[[], Found]) -> Found:
    """What look finds in the blob's place; where it raises FileNotFoundError, once more after bringing the blob back.

    Who brings back and who sets aside may pass each other, so that for a moment it seems to be in neither place:
    MissingBlob is raised where it was nowhere twice.
    """
    absences = 0
    for _ in range(LOOKS):
        try:
            return look()
        except FileNotFoundError:
            absences += not store.bring_back(sha256)
        if absences > 1:
            break
    raise MissingBlob(f"no blob {sha256}")


def blob_of(path: Path) -> Blob:
    """The sha256 and size of a file, read once."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            size += len(piece)
    return Blob(digest.hexdigest(), size)


def deliver(pieces: Iterable[bytes], sha256: str, target: Path) -> Path:
    """Write a blob's pieces to target and return that: whole and of this sha256 or, with CorruptBlob, not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        found = write(pieces, fresh)
        if found.sha256 != sha256:
            raise CorruptBlob(f"blob {sha256} holds {found.size_bytes} bytes whose sha256 is {found.sha256}")
        fresh.replace(target)
        sync_folder(target.parent)
    finally:
        fresh.unlink(missing_ok=True)
    return target


def write(pieces: Iterable[bytes], path: Path) -> Blob:
    """Write pieces to a new file, on the disk when this returns."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return Blob(digest.hexdigest(), size)


def sync_folder(folder: Path) -> None:
    """See that the names in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
