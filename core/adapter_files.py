"""An adapter on disk, whole: one PEFT folder, or of an ensemble one for each member, and an index beside them.

The index is ensemble.json: {"format": 1, "members": N, "vote": "majority", "tie": "mean_logprob"}. The folders are
member-0, member-1 and so on; each is an adapter by itself, which stock PEFT loads. Lester et al. 2021, section 6.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core import peft_files
from core.effects import Effect, Ensemble
from core.methods import Method

INDEX = "ensemble.json"
RULES = {"format": 1, "vote": "majority", "tie": "mean_logprob"}  # the only ones there are
MOST_MEMBERS = 16
MOST_INDEX_BYTES = 4096


def write(method: Method, folder: Path, base_model: str) -> None:
    """As peft_files.write, of a method that may have learned an ensemble."""
    with torch.no_grad():
        effect = method.effect()
    if not isinstance(effect, Ensemble):
        peft_files.write(method, folder, base_model)
        return
    for number, member in enumerate(effect.members):
        peft_files.write(_Member(member, method.peft_config()), folder / member_folder(number), base_model)
    index = RULES | {"members": len(effect.members)}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read(folder: Path) -> Effect | Ensemble:
    """The effect, or each member's. Raises ValueError as peft_files.read."""
    if not (folder / INDEX).is_file():
        return peft_files.read(folder)
    with (folder / INDEX).open("rb") as file:
        count = _members(file.read(MOST_INDEX_BYTES + 1))
    return Ensemble(tuple(peft_files.read(folder / member_folder(number)) for number in range(count)))


def read_zip(path: Path) -> Effect | Ensemble:
    """As read, out of a zip. Only known members are looked at, in memory, and all together unfold to LIMITS at most.

    Raises:
        ValueError: it is no such zip.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            if INDEX not in archive.namelist():
                return peft_files.read_zip(path)
            with archive.open(INDEX) as index:
                count = _members(index.read(MOST_INDEX_BYTES + 1))
            _refuse_bombs(archive, count)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the adapter is not a readable zip: {error}") from error
    return Ensemble(tuple(peft_files.read_zip(path, f"{member_folder(number)}/") for number in range(count)))


def member_folder(number: int) -> str:
    """Where a member lies. number counts from 0."""
    return f"member-{number}"


def first_folder(folder: Path) -> Path:
    """A PEFT folder of the adapter in this one: the adapter itself, or an ensemble's first member."""
    return folder / member_folder(0) if (folder / INDEX).is_file() else folder


@dataclass(frozen=True, eq=False)
class _Member:
    """What a file needs of one member."""

    worn: Effect
    config: dict[str, Any]

    def effect(self) -> Effect:
        return self.worn

    def peft_config(self) -> dict[str, Any]:
        return dict(self.config)


def _members(content: bytes) -> int:
    """How many members an index has."""
    if len(content) > MOST_INDEX_BYTES:
        raise ValueError(f"{INDEX} has more than {MOST_INDEX_BYTES} bytes")
    try:
        index = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{INDEX} is not JSON: {error}") from error
    if not isinstance(index, dict) or {k: v for k, v in index.items() if k != "members"} != RULES:
        raise ValueError(f"{INDEX} is not understood: members and {RULES} are expected")
    count = index.get("members")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_MEMBERS:
        raise ValueError(f"{INDEX} has {count!r} members; 1 to {MOST_MEMBERS} are expected")
    return count


def _refuse_bombs(archive: zipfile.ZipFile, count: int) -> None:
    """A member never unfolds to more than the zip's directory says, so what that says is enough."""
    folders = tuple(f"{member_folder(number)}/" for number in range(count))
    unfolded = sum(info.file_size for info in archive.infolist() if info.filename.startswith(folders))
    most = sum(peft_files.LIMITS.values())
    if unfolded > most:
        raise ValueError(f"the ensemble unfolds to {unfolded} bytes; at most {most} are read")
