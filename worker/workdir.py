"""The folder of one attempt at a job: its data, what it goes on from, what the trainer writes. Knows no database.

Every attempt has its own, data_dir/jobs/<job id>/e<lease epoch>, filled from the blob store: a superseded trainer that
still writes, on this machine or another, never writes to the folder that counts.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from core.blobs import BlobStore, CorruptBlob, MissingBlob
from worker.packing import unpack

_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")


def jobs_folder(data_dir: Path) -> Path:
    """Where the folders of all jobs lie. Absolute, since the trainer runs elsewhere."""
    return data_dir.resolve() / "jobs"


class WorkDir:
    """One attempt's folder. Nothing in it is needed once the attempt is over."""

    def __init__(self, data_dir: Path, job_id: str, lease_epoch: int, blobs: BlobStore) -> None:
        self._job_folder = jobs_folder(data_dir) / job_id
        self._lease_epoch = lease_epoch
        self._blobs = blobs
        self.path = self._job_folder / f"e{lease_epoch}"

    def open(self) -> None:
        """Begin with an empty folder. Those of earlier attempts on this machine are over."""
        for folder in self._job_folder.glob("e*"):
            if int(folder.name[1:]) < self._lease_epoch:
                shutil.rmtree(folder, ignore_errors=True)
        (self.path / "checkpoints").mkdir(parents=True)

    def fetch(self, sha256: str, name: str) -> Path:
        """A blob as a file of this name. MissingBlob, CorruptBlob, OSError."""
        return self._blobs.fetch(sha256, self.path / name)

    def restore(self, states: Iterable[str]) -> list[str]:
        """Bring back packed checkpoints by their sha256; return those that cannot be brought back."""
        unusable = []
        for sha256 in states:
            packed = self.path / "state.zip"
            try:
                unpack(self._blobs.fetch(sha256, packed), self.path / "checkpoints")
            except (MissingBlob, CorruptBlob, ValueError):
                unusable.append(sha256)
            finally:
                packed.unlink(missing_ok=True)
        return unusable

    def close(self) -> None:
        """Remove this attempt's folder, and the job's where no later attempt has one beside it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._job_folder.is_dir() and not any(self._job_folder.iterdir()):
            self._job_folder.rmdir()


def left_behind(data_dir: Path) -> list[str]:
    """The ids of the jobs that have a folder on this machine: of attempts under way, or whose worker was killed."""
    folder = jobs_folder(data_dir)
    return sorted(path.name for path in folder.iterdir() if _JOB.fullmatch(path.name)) if folder.is_dir() else []


def remove(data_dir: Path, job_id: str) -> None:
    """Remove what was left behind of a job that has ended."""
    shutil.rmtree(jobs_folder(data_dir) / job_id, ignore_errors=True)
