"""Blobs in a bucket that speaks S3."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from core.blob import CHUNK, SHA256, Blob, MissingBlob, Stored, blob_of, deliver, place, sought

SINGLE_PUT_BYTES = 64 << 20  # beyond this a blob is uploaded in parts, which only become visible together


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
        key = place(sha256)
        answer = sought(self, sha256, lambda: obstore.get(self.store, key, options={"range": (start, end)}))
        return (bytes(piece) for piece in answer.stream(min_chunk_size=CHUNK))

    def size(self, sha256: str) -> int:
        """See BlobStore."""
        return sought(self, sha256, lambda: int(obstore.head(self.store, place(sha256))["size"]))

    def fetch(self, sha256: str, target: Path) -> Path:
        """See BlobStore."""
        return deliver(self.read(sha256), sha256, target)

    def delete(self, sha256: str) -> None:
        """See BlobStore."""
        obstore.delete(self.store, [place(sha256), place(sha256, is_aside=True)])

    def listed(self, *, is_aside: bool = False) -> Iterator[Stored]:
        """See BlobStore."""
        for batch in obstore.list(self.store, prefix="aside/" if is_aside else "blobs/"):
            for item in batch:
                name = item["path"].rsplit("/", 1)[-1]
                if SHA256.fullmatch(name):
                    yield Stored(name, int(item["size"]), item["last_modified"].timestamp())

    def set_aside(self, sha256: str) -> None:
        """See BlobStore. A bucket cannot rename: it copies, and only then deletes."""
        if self._copied(place(sha256), place(sha256, is_aside=True)):
            obstore.delete(self.store, place(sha256))

    def bring_back(self, sha256: str) -> bool:
        """See BlobStore. What was aside is left there for drop: others may be at bringing it back."""
        return self._copied(place(sha256, is_aside=True), place(sha256)) or self._is_in_its_place(sha256)

    def drop(self, sha256: str) -> None:
        """See BlobStore."""
        obstore.delete(self.store, place(sha256, is_aside=True))

    def drop_unfinished(self, before: float) -> int:  # noqa: ARG002  # the contract's
        """See BlobStore. Parts of an upload that broke off are for a lifecycle rule of the bucket's."""
        return 0

    def _copied(self, source: str, target: str) -> bool:
        try:
            obstore.copy(self.store, source, target)
        except FileNotFoundError:
            return False
        return True

    def _is_in_its_place(self, sha256: str) -> bool:
        try:
            obstore.head(self.store, place(sha256))
        except FileNotFoundError:
            return False
        return True

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
