"""A stranger's zip: its directory is judged before a byte is unfolded, and nothing of it ever becomes a path.

Only members that are asked for are read, into memory, counted while they unfold. Knows no adapter.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.data.json_lines import name as printable

MAX_MEMBERS = 64  # a training folder has a dozen; macOS doubles them
MAX_DIRECTORY_BYTES = 1 << 20
MAX_RATIO = 50  # of what a member unfolds to over its size in the zip, beyond FREE_BYTES
FREE_BYTES = 64 << 20
MAGIC = b"PK\x03\x04"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
CONVERT = (
    "where you trust it, read it with torch.load(path, map_location='cpu', weights_only=True) and write its tensors "
    "with safetensors.torch.save_file"
)
_END = struct.Struct("<4s4H2LH")  # the end of central directory record
_END_MAGIC = b"PK\x05\x06"
_COMMENT_BYTES = 1 << 16
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read(path: Path, wanted: Mapping[str, int], optional: Mapping[str, int] | None = None) -> dict[str, bytes]:
    """The members of these names, which lie together: at the zip's top or in one folder of it.

    wanted: name -> the most bytes it may unfold to. optional: the same, of members that need not be there.

    Raises:
        ValueError: it is no zip, one that could not be meant well, holds a pickle, or lacks a member.

    """
    with _opened(path) as archive:
        members = archive.infolist()
        _judge(members)
        folder = _folder({m.filename for m in members}, wanted)
        found = {m.filename.removeprefix(folder): m for m in members if m.filename.startswith(folder)}
        limits = {name: limit for name, limit in {**(optional or {}), **wanted}.items() if name in found}
        return {name: _unfolded(archive, found[name], limit) for name, limit in limits.items()}


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as file:
        _check_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError) as error:
            raise ValueError(f"the zip cannot be read: {printable(str(error))}") from error


def _check_directory(file: BinaryIO) -> None:
    """The library reads the whole directory at once, so its size is looked at first."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _COMMENT_BYTES - _END.size))
    tail = file.read()
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) - at < _END.size:
        raise ValueError("the file is not a zip: it has no directory at its end")
    _, disk, first_disk, here, members, directory_bytes, _, _ = _END.unpack_from(tail, at)
    if disk or first_disk or here != members:
        raise ValueError("the zip is a part of several, which is not supported")
    if members > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise ValueError(f"the zip has {members} members; at most {MAX_MEMBERS} are read")


def _judge(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"the zip has {len(members)} members; at most {MAX_MEMBERS} are read")
    seen: set[str] = set()
    for member in members:
        name = printable(member.filename)
        if member.filename.casefold() in seen:
            raise ValueError(f"the zip has two members named {name}")
        seen.add(member.filename.casefold())
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"the zip's member {name} is a link: zip the file itself")
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"the zip's member {name} is encrypted: zip it without a password")
        if member.compress_type not in _METHODS:
            raise ValueError(f"the zip's member {name} is packed in an unusual way: store or deflate it")
        if member.filename.lower().endswith(PICKLES):
            raise ValueError(_of_pickle(name))


def _of_pickle(name: str) -> str:
    advice = "leave it out of the zip"
    match name.rpartition("/")[2]:
        case "data.pkl":
            advice = f"this is a file of torch.save; {CONVERT}"
        case last if last.startswith("adapter_model"):
            advice = "load it where you trust it, with peft, and call save_pretrained(folder)"
    return f"{name} may be a pickle, which runs code when it is read, so it never is: {advice}"


def _folder(names: set[str], wanted: Mapping[str, int]) -> str:
    """Where the wanted members lie: "" or "NAME/"."""
    first = next(iter(wanted))
    places = {name.removesuffix(first) for name in names if name.rpartition("/")[2] == first}
    places = {place for place in places if place.count("/") <= 1}
    if len(places) != 1:
        found = "more than one" if places else "no"
        raise ValueError(f"the zip has {found} {first} at its top or in a folder at its top; it needs one")
    place = places.pop()
    if missing := [name for name in wanted if place + name not in names]:
        raise ValueError(f"the zip has no {' and no '.join(missing)} beside {first}")
    return place


def _unfolded(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    name, size = printable(member.filename), member.file_size
    if size > limit:
        raise ValueError(f"{name} unfolds to {size} bytes; at most {limit} are read")
    if size > FREE_BYTES and size > MAX_RATIO * member.compress_size:
        raise ValueError(f"{name} unfolds to more than {MAX_RATIO} times its size in the zip: store it uncompressed")
    with archive.open(member) as file:
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} unfolds to another size than the zip says, which is {size} bytes")
    return content
