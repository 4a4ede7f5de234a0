"""Bytes by their sha256: a folder on this machine, or a bucket that speaks S3. Knows no row and no job."""

from pathlib import Path
from urllib.parse import urlsplit

from obstore.store import S3Store

from core.blob import Blob, BlobStore, CorruptBlob, MissingBlob, blob_of
from core.bucket import S3Blobs
from core.folder import FolderStore
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
