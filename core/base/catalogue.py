"""Which base models may be used, and where their files are. Knows no torch: the front end asks it too.

A customer's word is a key into the catalogue, never a path.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from core.specs.assignment import BaseModelEntry

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PACKAGE = re.compile(r"package:([A-Za-z0-9][A-Za-z0-9._-]*)")
_HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)", re.ASCII)


class UnknownBaseModel(LookupError):
    """No base model goes by this id. known: the ids that do."""

    def __init__(self, base_model: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no base model named {base_model[:100]!r}; this service has {', '.join(known) or 'none'}")
        self.base_model, self.known = base_model, known


class UnusableBaseModel(ValueError):
    """The files of a catalogue entry are missing, or of a kind that is not read here. For the administrator."""


@dataclass(frozen=True)
class HubID:
    """A repository of the model hub at one revision: a branch, a tag or, best, a commit."""

    name: str
    revision: str


def entry(base_models: Mapping[str, str], base_model: str) -> BaseModelEntry:
    """The catalogue's entry of this id. base_models is the setting: id -> source.

    Raises:
        UnknownBaseModel: no such id.
        UnusableBaseModel: the id or the source of that entry is of no form that catalogue entries have.

    """
    if base_model not in base_models:
        raise UnknownBaseModel(base_model, tuple(sorted(base_models)))
    if not _ID.fullmatch(base_model):
        raise UnusableBaseModel(
            f"base model id {base_model!r}: at most 64 of a-z 0-9 . _ - and a letter or digit first"
        )
    source = base_models[base_model]
    place = parse(source)
    return BaseModelEntry(id=base_model, source=source, revision=place.revision if isinstance(place, HubID) else None)


def parse(source: str) -> HubID | str | Path:
    """A source read: a hub id, the name of an installed package, or the path of a folder or a .gguf file."""
    if source.startswith("hub:"):
        if not (hub := _HUB.fullmatch(source)):
            raise UnusableBaseModel(f"base model source {source!r} is not hub:OWNER/NAME@REVISION")
        return HubID(hub[1], hub[2])
    if source.startswith("package:"):
        if not (package := _PACKAGE.fullmatch(source)):
            raise UnusableBaseModel(f"base model source {source!r} is not package:NAME")
        return package[1]
    if not source:
        raise UnusableBaseModel("a base model's source is empty; give package:NAME, a folder, a .gguf file or a hub id")
    return Path(source).expanduser()


def source_file(base: BaseModelEntry) -> Path:
    """Where an entry's files are on this machine: a .gguf file or a folder. Not for hub entries, which may be nowhere.

    Raises:
        UnusableBaseModel: nothing usable is there.

    """
    match parse(base.source):
        case HubID():
            raise ValueError(f"base model {base.id!r} is a hub entry: its files are where load.py puts them")
        case str(package):
            return _weights_in_package(base.id, package)
        case path if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
            return path.resolve()
        case path:
            found = "is neither a folder nor a .gguf file" if path.exists() else "does not exist"
            raise UnusableBaseModel(f"base model {base.id!r}: {path} {found}")


def _weights_in_package(base_model: str, package: str) -> Path:
    """The one .gguf file of an installed distribution. Its code is not imported."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UnusableBaseModel(
            f"base model {base_model!r}: the Python package {package} is not installed here"
        ) from None
    weights = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(weights) != 1 or not weights[0].is_file():
        raise UnusableBaseModel(
            f"base model {base_model!r}: the package {package} holds {len(weights)} .gguf files; one is expected"
        )
    return weights[0].resolve()
