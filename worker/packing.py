"""A checkpoint's folder as one file: the same bytes for the same content, so that its sha256 names it."""

import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold


def pack(folder: Path, target: Path, owner: str) -> Path:
    """Write folder, its own name included, to the zip file target: stored, sorted, undated, for an owner."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = owner.encode()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo((PurePosixPath(folder.name) / path.relative_to(folder)).as_posix(), _LONG_AGO)
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as stored:
                shutil.copyfileobj(source, stored, 1 << 20)
    return target


def unpack(source: Path, into: Path) -> Path:
    """Bring back the folder that pack() took, whole or not at all. ValueError where pack() did not write source."""
    into.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(source) as archive:
            name = _only_folder(archive.namelist())
            with tempfile.TemporaryDirectory(dir=into, prefix=".unpacking-") as scratch:
                archive.extractall(scratch)
                return (Path(scratch) / name).rename(into / name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source.name} is not a packed checkpoint: {error}") from error


def _only_folder(names: list[str]) -> str:
    parts = [PurePosixPath(name).parts for name in names]
    if not parts or any(len(path) < 2 or ".." in path or path[0] in {"/", "."} for path in parts):  # noqa: PLR2004
        raise ValueError(f"a packed checkpoint holds files of one folder; this holds {names[:3]}")
    folders = {path[0] for path in parts}
    if len(folders) > 1:
        raise ValueError(f"a packed checkpoint holds one folder; this holds {sorted(folders)[:3]}")
    return folders.pop()
