"""Blobs in a folder of this machine: blobs/, aside/ and tmp/ on one file system, so that a rename publishes."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.blob import CHUNK, SHA256, Blob, Stored, deliver, place, sought, sync_folder, write


class FolderStore:
    """The store of one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        (root / "blobs").mkdir(exist_ok=True)
        (root / "aside").mkdir(exist_ok=True)

    def put(self, path: Path) -> Blob:
        """See BlobStore."""
        with path.open("rb") as file:
            return self._publish(iter(lambda: file.read(CHUNK), b""))

    def put_bytes(self, content: bytes) -> Blob:
        """See BlobStore."""
        return self._publish([content])

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See BlobStore."""
        size = self.size(sha256)
        return self._slices(sha256, start, size if end is None else min(end, size))

    def size(self, sha256: str) -> int:
        """See BlobStore."""
        return sought(self, sha256, lambda: (self.root / place(sha256)).stat().st_size)

    def fetch(self, sha256: str, target: Path) -> Path:
        """See BlobStore."""
        return deliver(self.read(sha256), sha256, target)

    def delete(self, sha256: str) -> None:
        """See BlobStore."""
        (self.root / place(sha256)).unlink(missing_ok=True)
        self.drop(sha256)

    def listed(self, *, is_aside: bool = False) -> Iterator[Stored]:
        """See BlobStore."""
        for folder in sorted((self.root / ("aside" if is_aside else "blobs")).iterdir()):
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if SHA256.fullmatch(entry.name)]
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    told = (folder / name).stat()
                    yield Stored(name, told.st_size, told.st_mtime)

    def set_aside(self, sha256: str) -> None:
        """See BlobStore."""
        here, there = self.root / place(sha256), self.root / place(sha256, is_aside=True)
        there.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # Before the rename: a crash between leaves a young blob, and never an old one that is aside.
            os.utime(here)
            here.replace(there)
            _sync_both(here, there)

    def bring_back(self, sha256: str) -> bool:
        """See BlobStore."""
        here, there = self.root / place(sha256), self.root / place(sha256, is_aside=True)
        with contextlib.suppress(FileNotFoundError):
            there.replace(here)  # over a blob that was just written again: equal bytes over equal bytes
            _sync_both(there, here)
        return here.exists()

    def drop(self, sha256: str) -> None:
        """See BlobStore."""
        (self.root / place(sha256, is_aside=True)).unlink(missing_ok=True)

    def drop_unfinished(self, before: float) -> int:
        """See BlobStore."""
        dropped = 0
        for path in (self.root / "tmp").iterdir():
            with contextlib.suppress(FileNotFoundError):
                told = path.stat()
                if told.st_mtime < before:
                    path.unlink()
                    dropped += told.st_size
        return dropped

    def _slices(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        # It may have been set aside since its size was asked for.
        with sought(self, sha256, lambda: (self.root / place(sha256)).open("rb")) as file:
            file.seek(start)
            while start < end and (piece := file.read(min(CHUNK, end - start))):
                start += len(piece)
                yield piece

    def _publish(self, pieces: Iterable[bytes]) -> Blob:
        fresh = self.root / "tmp" / secrets.token_hex(16)
        try:
            blob = write(pieces, fresh)
            final = self.root / place(blob.sha256)
            final.parent.mkdir(exist_ok=True)
            # Equal bytes in place of equal bytes: it heals a damaged blob, and makes it young for who collects.
            fresh.replace(final)
            sync_folder(final.parent)
            sync_folder(final.parent.parent)
        finally:
            fresh.unlink(missing_ok=True)
        return blob


def _sync_both(one: Path, other: Path) -> None:
    sync_folder(one.parent)
    sync_folder(other.parent)
