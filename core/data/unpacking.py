"""A file as it was before it was packed: gzip is undone while it is read, up to a bound. Knows no content."""

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from core.data.faults import Fault

GZIP: Final = b"\x1f\x8b"
PIECE_BYTES = 1 << 16


class UnreadableError(ValueError):
    """From here on the file cannot be read. code and message are for its owner; the reader knows the line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    def fault(self, line: int) -> Fault:
        """The same, of a whole line."""
        return Fault(line, "", self.code, self.message)


@contextmanager
def opened(path: Path, max_unpacked_bytes: int | None = None) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is a gzip archive: then reading may raise UnreadableError. It can peek().

    max_unpacked_bytes bounds what an archive unfolds to, not a plain file. None trusts it: its bytes were read before.
    """
    with path.open("rb", PIECE_BYTES) as file:
        if file.read(2) != GZIP:
            file.seek(0)
            yield file
            return
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as packed:
            yield cast("BinaryIO", io.BufferedReader(_Unpacked(packed, max_unpacked_bytes), PIECE_BYTES))


@contextmanager
def seekable(file: BinaryIO, folder: Path) -> Iterator[BinaryIO]:
    """The same bytes where one may jump about: in a file without a name, if they are unpacked as they are read."""
    if not isinstance(file.raw, _Unpacked):  # type: ignore[attr-defined]  # every file of opened() is buffered
        yield file
        return
    with tempfile.TemporaryFile(dir=folder) as whole:
        shutil.copyfileobj(file, whole)
        whole.seek(0)
        yield cast("BinaryIO", whole)


class _Unpacked(io.RawIOBase):
    """A gzip archive's content, counted."""

    def __init__(self, packed: gzip.GzipFile, max_bytes: int | None) -> None:
        self._packed, self._max_bytes, self._count = packed, max_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]  # io.BufferedReader gives a memoryview
        try:
            piece = self._packed.read(len(into))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UnreadableError("damaged_gzip", f"the gzip archive is damaged: {error}") from error
        self._count += len(piece)
        if self._max_bytes is not None and self._count > self._max_bytes:
            message = f"the gzip archive unfolds to more than {self._max_bytes} bytes; at most so many are allowed"
            raise UnreadableError("unpacked_too_large", message)
        into[: len(piece)] = piece
        return len(piece)
