"""Bytes by their sha256: a folder on this machine, or a bucket that speaks S3. Knows no row and no job."""

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from obstore.store import S3Store

from core.blob import CHUNK, Blob, BlobStore, CorruptBlob, MissingBlob, blob_of, deliver, place, sync_folder, write
from core.bucket import S3Blobs
from core.settings import Settings

__all__ = ["Blob", "BlobStore", "CorruptBlob", "FolderStore", "MissingBlob", "S3Blobs", "blob_of", "open_store"]


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
        return deliver(self.read(sha256), sha256, target)

    def delete(self, sha256: str) -> None:
        """See BlobStore."""
        (self.root / place(sha256)).unlink(missing_ok=True)

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


def _slices(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(CHUNK, end - start))):
            start += len(piece)
            yield piece
