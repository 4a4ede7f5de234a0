"""Blobs that no row names: set aside, and removed for good once they have lain there long enough.

Neither step holds a lock or a transaction while it works. A blob that is set aside wrongly, since a row came in between
or its bytes were written again, is brought back by whoever reads it, and by the next look at what lies aside: a row
that names it counts for more than its age. Several collectors at once only do the same twice.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Self

from core.blob import BlobStore, Stored
from core.records.database import Database, clock
from core.records.named import named

SETTLED_S = 3600.0  # a blob younger than this may be one whose row is still to be written
MANY = 500  # blobs asked after at once


@dataclass(frozen=True)
class Collected:
    """How much was done: blobs and their bytes. unfinished_bytes: of what writers left half done."""

    aside: int = 0
    aside_bytes: int = 0
    brought_back: int = 0
    removed: int = 0
    removed_bytes: int = 0
    unfinished_bytes: int = 0

    def __add__(self, other: Self) -> "Collected":
        return Collected(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


def collecting(db: Database, store: BlobStore, *, kept_s: float, settled_s: float = SETTLED_S) -> Iterator[Collected]:
    """Collect once, and tell after each batch of blobs what was done with it, so that a caller may stop in between.

    kept_s: how long what is set aside can be brought back. settled_s: how old a blob must be to be set aside.
    Raises SQLAlchemyError, OSError and obstore's BaseError; what was done until then stays done.
    """
    with db.session() as session:
        now = clock(session)
    for some in _batches(one for one in store.listed() if one.changed_at < now - settled_s):
        yield _set_aside(db, store, some)
    for some in _batches(store.listed(is_aside=True)):
        yield _settled(db, store, some, now - kept_s)
    yield Collected(unfinished_bytes=store.drop_unfinished(now - max(kept_s, settled_s)))


def collect(db: Database, store: BlobStore, *, kept_s: float, settled_s: float = SETTLED_S) -> Collected:
    """All of it at once."""
    return sum(collecting(db, store, kept_s=kept_s, settled_s=settled_s), Collected())


def unnamed(db: Database, store: BlobStore, *, settled_s: float = SETTLED_S) -> Iterator[Stored]:
    """Blobs in their place that no row names and that are older than settled_s: what the next collection sets aside."""
    with db.session() as session:
        now = clock(session)
    for some in _batches(one for one in store.listed() if one.changed_at < now - settled_s):
        yield from _without_names(db, some)


def _set_aside(db: Database, store: BlobStore, some: list[Stored]) -> Collected:
    nobodys = _without_names(db, some)
    for one in nobodys:
        store.set_aside(one.sha256)
    return Collected(aside=len(nobodys), aside_bytes=sum(one.size_bytes for one in nobodys))


def _settled(db: Database, store: BlobStore, some: list[Stored], before: float) -> Collected:
    """Brings back what a row names after all; removes what nobody has missed since before."""
    nobodys = _without_names(db, some)
    wanted = [one for one in some if one not in nobodys]
    for one in wanted:
        store.bring_back(one.sha256)
    old = [one for one in nobodys if one.changed_at < before]
    for one in old:
        store.drop(one.sha256)
    return Collected(brought_back=len(wanted), removed=len(old), removed_bytes=sum(one.size_bytes for one in old))


def _without_names(db: Database, some: list[Stored]) -> list[Stored]:
    with db.session() as session:
        kept = named(session, [one.sha256 for one in some])
    return [one for one in some if one.sha256 not in kept]


def _batches(stored: Iterable[Stored]) -> Iterator[list[Stored]]:
    listed = iter(stored)
    while some := list(itertools.islice(listed, MANY)):
        yield some
