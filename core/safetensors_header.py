"""What a safetensors file says of itself, checked before any library may believe it. Knows no tensor and no adapter.

The format: eight bytes, little-endian, that say how long the header is; the header, a JSON object; the tensors' bytes.
The library itself accepts repeated keys, dimensions of 0 beside dimensions of 2^60, and headers of half a million
tensors.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

from core.data.json_lines import MalformedLineError, name, parse, see

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_METADATA_BYTES = 16 << 10
MAX_DIMENSIONS = 4
MAX_DIMENSION = 1 << 31
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of one number
_PREFIX = struct.Struct("<Q")
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,300}")


@dataclass(frozen=True)
class Entry:
    """One tensor as the header has it: where it lies, in bytes from the header's end."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def check(content: bytes | memoryview) -> list[Entry]:
    """The tensors of a whole file, in the order of their bytes.

    Raises:
        ValueError: the header is too long or no JSON of the kind; a tensor is not of F32, F16 or BF16, has no number
            or an odd name; or the tensors do not cover the file, each byte once.

    """
    size = len(content)
    if size < _PREFIX.size:
        raise ValueError(f"a safetensors file starts with 8 bytes that say how long its header is; it has {size} bytes")
    (header_size,) = _PREFIX.unpack(content[: _PREFIX.size])
    if header_size > MAX_HEADER_BYTES or header_size > size - _PREFIX.size:
        raise ValueError(
            f"the header claims {header_size} bytes; at most {MAX_HEADER_BYTES} and what the file holds are read"
        )
    body_size = size - _PREFIX.size - header_size
    header = _json(bytes(content[_PREFIX.size : _PREFIX.size + header_size]))
    _check_metadata(header.pop("__metadata__", {}))
    if not 1 <= len(header) <= MAX_TENSORS:
        raise ValueError(f"the header names {len(header)} tensors; 1 to {MAX_TENSORS} are read")
    entries = sorted((_entry(key, value) for key, value in header.items()), key=lambda e: (e.start, e.end))
    reached = 0
    for entry in entries:
        if entry.start != reached:
            kind = "overlaps the tensor before it" if entry.start < reached else "leaves bytes before it unnamed"
            raise ValueError(f"tensor {entry.name} {kind}: it starts at {entry.start}, {reached} is due")
        reached = entry.end
    if reached != body_size:
        raise ValueError(f"the tensors take {reached} bytes, the file has {body_size} for them")
    return entries


def _json(content: bytes) -> dict[str, Any]:
    try:
        header = parse(content)
        see(header)
    except MalformedLineError as error:
        raise ValueError(f"the header is not JSON as it should be: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")  # noqa: TRY004 - the file is wrong, not a caller
    return header


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the header's __metadata__ is not an object of strings")
    if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_METADATA_BYTES:
        raise ValueError(f"the header's __metadata__ has more than {MAX_METADATA_BYTES} characters")


def _entry(key: str, value: object) -> Entry:
    if not _NAME.fullmatch(key):
        raise ValueError(f"a tensor is named {name(key)!r}; letters, digits and . _ - are expected")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {key}: dtype, shape and data_offsets are expected, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise ValueError(f"tensor {key} is of dtype {name(str(dtype))}; one of {', '.join(WIDTHS)} is expected")
    if not _are_whole(shape) or len(shape) > MAX_DIMENSIONS or not all(1 <= d < MAX_DIMENSION for d in shape):
        raise ValueError(f"tensor {key}: its shape is not a list of up to {MAX_DIMENSIONS} whole numbers from 1")
    if not _are_whole(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:  # noqa: PLR2004 - two ends
        raise ValueError(f"tensor {key}: its data_offsets are not a start and an end")
    start, end = offsets
    wanted = math.prod(shape) * WIDTHS[dtype]
    if end - start != wanted:
        raise ValueError(f"tensor {key} has {end - start} bytes; {dtype} of shape {shape} takes {wanted}")
    return Entry(key, dtype, tuple(shape), start, end)


def _are_whole(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
