"""Bytes by their sha256: a folder on this machine, or a bucket that speaks S3. Knows no row and no job.

A blob is published whole or not at all and never altered: its name is its content. So writing it twice is harmless, and
whoever reads it can tell whether it is right. Names are checked wherever they come in: no caller's text becomes a path.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from core.settings import Settings

CHUNK = 1 << 20
SINGLE_PUT_BYTES = 64 << 20  # beyond this a blob is uploaded in parts, which only become visible together
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
        """Remove a blob; nothing happens if it is not there. Only for blobs that no row names."""
        ...


def open_store(settings: Settings) -> BlobStore:
    """The store that settings.blobs names: file:///folder or s3://bucket/prefix."""
    url = settings.blobs
    if url.startswith("file://"):
        return FolderStore(Path(url.removeprefix("file://")))
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"GRAFT_BLOB_URL {url!r} is neither file:///folder nor s3://bucket/prefix")
    secret = settings.s3_secret_access_key
    given = {
        "endpoint": settings.s3_endpoint,
        "access_key_id": settings.s3_access_key_id,
        "secret_access_key": secret.get_secret_value() if secret else None,
    }
    return S3Blobs(
        S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            region=settings.s3_region,
            client_options={"allow_http": (settings.s3_endpoint or "").startswith("http://"), "timeout": "60s"},
            **{name: value for name, value in given.items() if value},  # type: ignore[arg-type]
        )
    )


def place(sha256: str) -> str:
    """Where a blob lies below the store's root: blobs/ab/<sha256>."""
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256[:80]!r} is not a sha256 in 64 small hex digits")
    return f"blobs/{sha256[:2]}/{sha256}"


def blob_of(path: Path) -> Blob:
    """The sha256 and size of a file, read once."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            size += len(piece)
    return Blob(digest.hexdigest(), size)


class FolderStore:
    """A folder: tmp/ and blobs/ on one file system, so that a rename publishes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        (root / "blobs").mkdir(exist_ok=True)

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
        return _slices(self.root / place(sha256), start, size if end is None else min(end, size))

    def size(self, sha256: str) -> int:
        """See BlobStore."""
        try:
            return (self.root / place(sha256)).stat().st_size
        except FileNotFoundError:
            raise MissingBlob(f"no blob {sha256}") from None

    def fetch(self, sha256: str, target: Path) -> Path:
        """See BlobStore."""
        return _deliver(self.read(sha256), sha256, target)

    def delete(self, sha256: str) -> None:
        """See BlobStore."""
        (self.root / place(sha256)).unlink(missing_ok=True)

    def _publish(self, pieces: Iterable[bytes]) -> Blob:
        fresh = self.root / "tmp" / secrets.token_hex(16)
        try:
            blob = _write(pieces, fresh)
            final = self.root / place(blob.sha256)
            final.parent.mkdir(exist_ok=True)
            # Equal bytes in place of equal bytes: it heals a damaged blob, and makes it young for who collects.
            fresh.replace(final)
            _sync_folder(final.parent)
            _sync_folder(final.parent.parent)
        finally:
            fresh.unlink(missing_ok=True)
        return blob


class S3Blobs:
    """A bucket. Its own conditional PUT keeps a blob from being written twice."""

    def __init__(self, store: S3Store) -> None:
        self.store = store

    def put(self, path: Path) -> Blob:
        """See BlobStore."""
        blob = blob_of(path)
        key = place(blob.sha256)
        if blob.size_bytes <= SINGLE_PUT_BYTES:
            return self._put_once(blob, path.read_bytes())
        if not self._has(blob):
            obstore.put(self.store, key, path, chunk_size=16 << 20, max_concurrency=4)
        return blob

    def put_bytes(self, content: bytes) -> Blob:
        """See BlobStore."""
        return self._put_once(Blob(hashlib.sha256(content).hexdigest(), len(content)), content)

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See BlobStore."""
        size = self.size(sha256)
        end = size if end is None else min(end, size)
        if start >= end:
            return iter(())
        try:
            answer = obstore.get(self.store, place(sha256), options={"range": (start, end)})
        except FileNotFoundError:
            raise MissingBlob(f"no blob {sha256}") from None
        return (bytes(piece) for piece in answer.stream(min_chunk_size=CHUNK))

    def size(self, sha256: str) -> int:
        """See BlobStore."""
        try:
            return int(obstore.head(self.store, place(sha256))["size"])
        except FileNotFoundError:
            raise MissingBlob(f"no blob {sha256}") from None

    def fetch(self, sha256: str, target: Path) -> Path:
        """See BlobStore."""
        return _deliver(self.read(sha256), sha256, target)

    def delete(self, sha256: str) -> None:
        """See BlobStore."""
        obstore.delete(self.store, place(sha256))

    def _put_once(self, blob: Blob, content: bytes) -> Blob:
        key = place(blob.sha256)
        try:
            obstore.put(self.store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            if not self._has(blob):
                obstore.put(self.store, key, content, use_multipart=False)
        return blob

    def _has(self, blob: Blob) -> bool:
        try:
            return self.size(blob.sha256) == blob.size_bytes
        except MissingBlob:
            return False


def _slices(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(CHUNK, end - start))):
            start += len(piece)
            yield piece


def _deliver(pieces: Iterable[bytes], sha256: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        found = _write(pieces, fresh)
        if found.sha256 != sha256:
            raise CorruptBlob(f"blob {sha256} holds {found.size_bytes} bytes whose sha256 is {found.sha256}")
        fresh.replace(target)
        _sync_folder(target.parent)
    finally:
        fresh.unlink(missing_ok=True)
    return target


def _write(pieces: Iterable[bytes], path: Path) -> Blob:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
