"""A stopped run on disk, whole or not at all: tensors as safetensors, the rest as JSON, checksums of both; no pickle.

A checkpoint is a folder ck-<step>-e<lease epoch> of state.safetensors, state.json and manifest.json. It is written
under another name, forced to disk and renamed, so that its name alone says that it was whole once. Its checksums say
whether it still is: what fails them is set aside as corrupt-… and the one before is taken. Knows nothing of what the
state means.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

NAME = re.compile(r"ck-(\d{8,})-e(\d+)")
UNFINISHED, CORRUPT = "tmp-", "corrupt-"
TENSORS, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was saved after a step. facts is JSON: strings, numbers, lists and objects of them."""

    step: int
    path: Path
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Damage:
    """A checkpoint that is not what was written: what was found, and where it was set aside."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Search:
    """The newest whole checkpoint, if any, and the newer ones that were set aside on the way to it."""

    found: Checkpoint | None
    damaged: tuple[Damage, ...]


class _DamagedError(Exception):
    """Why a folder cannot be gone on from."""


def save(
    folder: Path, *, step: int, lease_epoch: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int = 2
) -> Path:
    """Puts a checkpoint into folder and returns its path; then drops all but the newest keep.

    A folder that already bears the name is set aside: a rename onto it would fail, today and at every attempt to come.
    Raises OSError where the disk refuses (full, read-only); nothing but an unfinished folder is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    fresh.mkdir()
    contents = {
        TENSORS: bytes_of({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}),
        FACTS: _json({**facts, "step": step}),
    }
    for name, content in contents.items():
        _write(fresh / name, content)
    files = {name: {"sha256": _sha256(content), "bytes": len(content)} for name, content in contents.items()}
    _write(fresh / MANIFEST, _json({"step": step, "lease_epoch": lease_epoch, "files": files}))
    _sync(fresh)
    target = folder / f"ck-{step:08d}-e{lease_epoch}"
    if target.exists():
        _set_aside(target)
    fresh.rename(target)
    _sync(folder)
    for _, _, older in list(_newest_first(folder))[keep:]:
        _drop(_unnamed(older))
    return target


def newest(folder: Path) -> Search:
    """Looks for the newest whole checkpoint, sets aside every damaged one above it and clears unfinished ones.

    For the process that owns the folder, before it saves anything. A folder that is not there holds no checkpoint.
    """
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        _drop(unfinished)
    damaged: list[Damage] = []
    for step, lease_epoch, path in _newest_first(folder):
        try:
            return Search(_read(path, step, lease_epoch), tuple(damaged))
        except _DamagedError as damage:
            damaged.append(Damage(_set_aside(path), str(damage)))
    return Search(None, tuple(damaged))


def _newest_first(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(step, lease epoch, path) of all that bears a checkpoint's name, the furthest first."""
    named = ((NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    yield from sorted(((int(name[1]), int(name[2]), path) for name, path in named if name), reverse=True)


def _read(path: Path, step: int, lease_epoch: int) -> Checkpoint:
    manifest = _parsed(_content(path / MANIFEST), MANIFEST)
    if (manifest.get("step"), manifest.get("lease_epoch")) != (step, lease_epoch):
        raise _DamagedError(f"{MANIFEST} is of step {manifest.get('step')}, lease epoch {manifest.get('lease_epoch')}")
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != {TENSORS, FACTS}:
        raise _DamagedError(f"{MANIFEST} does not name {TENSORS} and {FACTS}")
    contents = {name: _verified(path / name, expected) for name, expected in files.items()}
    return Checkpoint(step, path, tensors_of(contents[TENSORS]), _parsed(contents[FACTS], FACTS))


def _verified(path: Path, expected: Mapping[str, Any]) -> bytes:
    content = _content(path)
    if expected != {"sha256": _sha256(content), "bytes": len(content)}:
        raise _DamagedError(f"{path.name} ({len(content)} bytes) is not what {MANIFEST} says it is")
    return content


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as refusal:
        raise _DamagedError(f"{path.name} cannot be read: {refusal.strerror}") from refusal


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        parsed = json.loads(content)
        if isinstance(parsed, dict):
            return parsed
    raise _DamagedError(f"{name} is not a JSON object")


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{CORRUPT}{path.name}-{secrets.token_hex(4)}")
    path.rename(aside)
    return aside


def _unnamed(path: Path) -> Path:
    """What is to be removed loses its name first: whoever dies over it leaves no checkpoint of which half is gone."""
    fresh = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):  # as in _drop
        path.rename(fresh)
    return fresh


def _drop(path: Path) -> None:
    # An attempt that was given up but does not know it yet may drop the same folder at the same time. What stays
    # behind is dropped next time.
    shutil.rmtree(path, ignore_errors=True)


def _json(thing: Mapping[str, Any]) -> bytes:
    return json.dumps(thing, sort_keys=True, allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Forces to disk which names the folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
