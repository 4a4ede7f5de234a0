"""`graft fsck`: rows held against blobs. What was found, what it means and what to do, for a person at a terminal."""

from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url

from core.blobs import open_store
from core.records.collecting import collect, unnamed
from core.records.database import Database
from core.records.soundness import Fault, faults
from core.settings import Settings

HOUR_S = 3600.0
WHAT_TO_DO = {
    "missing": (
        "Bytes that a row needs are gone: a dataset's jobs fail, an adapter is neither served nor downloaded, a run "
        "goes on from an earlier checkpoint. Bring the store back from a backup that is no older than the database; "
        "or delete the file or model, and upload or train it again."
    ),
    "digest": (
        "Bytes were altered in the store, by a failing disk or by hand: readers refuse them. Look after the disk. "
        "Uploading the same file again heals a dataset; anything else comes from a backup, or is deleted and made anew."
    ),
    "size": ("A row and its blob disagree, and the blob is whole: someone altered the row. Correct or delete it."),
    "job": (
        "No move of the service leads to this: the row was altered by hand, or this is a defect. Stop the service, "
        "keep a copy of the database, report it with what is said here, and cancel or retry the job."
    ),
}
WHAT_TO_DO["adapter"] = WHAT_TO_DO["job"]


@dataclass
class Report:
    """What a check found. orphans: old blobs that no row names, waste and no fault; the rest: of --repair."""

    faults: list[Fault] = field(default_factory=list)
    orphans: int = 0
    orphan_bytes: int = 0
    set_aside: int = 0
    removed_bytes: int = 0

    def lines(self) -> list[str]:
        """The report, a line each; what is of one kind stands together under what to do about it."""
        said = list[str]()
        for kind in dict.fromkeys(fault.kind for fault in self.faults):
            said += [f"{kind}: {fault.of}: {fault.found}" for fault in self.faults if fault.kind == kind]
            said.append(f"  {WHAT_TO_DO[kind]}")
        if self.orphans:
            waste = f"{self.orphans} blobs of {self.orphan_bytes} bytes belong to no row"
            said.append(f"{waste}: what was deleted, or left by a crash. The service removes them by itself")
            said.append(
                f"  {self.set_aside} of them are set aside now" if self.set_aside else "  --repair does it at once"
            )
        if self.removed_bytes:
            said.append(f"{self.removed_bytes} bytes that had lain aside long enough were removed")
        said.append(f"{len(self.faults)} faults" if self.faults else "rows and blobs agree")
        return said


def check(settings: Settings, *, repair: bool) -> Report:
    """Look at everything, beside a service that may be at work. Raises SQLAlchemyError, OSError, obstore's BaseError.

    A SQLite file that is not there is FileNotFoundError: a check makes no new database.
    repair: do what the housekeeper does next: set aside blobs that no row names. Rows are never altered.
    """
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise FileNotFoundError(url.database)
    db, store, report = Database(settings.database), open_store(settings), Report()
    try:
        report.faults = list(faults(db, store))
        for orphan in unnamed(db, store):
            report.orphans += 1
            report.orphan_bytes += orphan.size_bytes
        if repair:
            done = collect(db, store, kept_s=settings.deleted_retention_hours * HOUR_S)
            report.set_aside, report.removed_bytes = done.aside, done.removed_bytes + done.unfinished_bytes
    finally:
        db.close()
    return report
