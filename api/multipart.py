"""A multipart form read as it comes: its one file goes to disk, counted; its small fields to memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from anyio.to_thread import run_sync
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from api import errors

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4096
MAX_HEADER_BYTES = 4096
MAX_NAME_CHARACTERS = 255
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Form:
    """What came: the fields by name, the file's own name, and its size on disk."""

    fields: Mapping[str, str]
    filename: str
    size_bytes: int


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    header: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    content: bytearray = field(default_factory=bytearray)


class _Reader:
    """The parser's callbacks. Collects what is to be written; writing is the caller's, in a thread."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.unwritten = bytearray()
        self.is_complete = False
        self._part = _Part()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(self._part.header, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._part.header_value, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._content,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self._part = _Part()

    def _grow(self, text: bytearray, more: bytes) -> None:
        text += more
        if len(text) > MAX_HEADER_BYTES:
            raise errors.bad_request(
                f"A header of the form exceeds {MAX_HEADER_BYTES} bytes.", code="invalid_multipart"
            )

    def _end_header(self) -> None:
        if bytes(self._part.header).strip().lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._part.header_value))
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename")
            self._part.filename = None if filename is None else filename.decode("utf-8", "replace")
        self._part.header.clear()
        self._part.header_value.clear()

    def _end_headers(self) -> None:
        if not self._is_file:
            return
        if self.filename is not None:
            raise errors.bad_request("The form holds more than one file.", param="file", code="invalid_multipart")
        self.filename = _plain_name(self._part.filename or "upload")

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.unwritten += data[start:end]
            return
        self._part.content += data[start:end]
        if len(self._part.content) > MAX_FIELD_BYTES:
            raise errors.bad_request(f"A field of the form exceeds {MAX_FIELD_BYTES} bytes.", code="invalid_multipart")

    def _end(self) -> None:
        if self._is_file:
            return
        if len(self.fields) >= MAX_FIELDS or self._part.name in self.fields:
            raise errors.bad_request(
                f"The form names a field twice or holds more than {MAX_FIELDS}.", code="invalid_multipart"
            )
        self.fields[self._part.name] = self._part.content.decode("utf-8", "replace")

    def _complete(self) -> None:
        self.is_complete = True

    @property
    def _is_file(self) -> bool:
        return self._part.name == "file"


async def read_form(request: Request, target: BinaryIO, *, max_bytes: int) -> Form:
    """Writes the form's field "file" to target. Raises ClientError 400, or 413 once the body exceeds max_bytes."""
    reader = _Reader()
    parser = MultipartParser(_boundary(request), reader.callbacks())  # type: ignore[arg-type]
    body_bytes = size_bytes = 0
    async for chunk in request.stream():
        body_bytes += len(chunk)
        if body_bytes > max_bytes:
            raise errors.too_large(max_bytes)
        try:
            parser.write(chunk)
        except MultipartParseError:
            raise errors.bad_request("The body is not a multipart form.", code="invalid_multipart") from None
        if reader.unwritten:
            size_bytes += await run_sync(target.write, bytes(reader.unwritten))
            reader.unwritten.clear()
    if not reader.is_complete:
        raise errors.bad_request("The multipart form ends before its end.", code="invalid_multipart")
    if reader.filename is None:
        raise errors.bad_request("file: this field is required", param="file", code="missing_required_parameter")
    return Form(reader.fields, reader.filename, size_bytes)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:  # noqa: PLR2004
        raise errors.bad_request(
            "Send the file as multipart/form-data with the fields file and purpose.", code="invalid_multipart"
        )
    return boundary


def _plain_name(filename: str) -> str:
    """A name fit for people and headers: no path, no control characters, not too long."""
    last = Path(filename.replace("\\", "/")).name
    return _UNFIT.sub("", last)[-MAX_NAME_CHARACTERS:] or "upload"
