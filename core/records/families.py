"""Adapters as a registry shows them: the versions of one suffix together, and alone what has no suffix."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import Adapter

SHOWN = 5  # versions of one family in a list of families


@dataclass(frozen=True)
class Family:
    """name: the suffix; None of an adapter without one. versions: the newest of its n_versions, newest first."""

    name: str | None
    versions: Sequence[Adapter]
    n_versions: int


def listed(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[Adapter]:
    """The newest living version of each family, and each adapter without one; the newest first."""
    newer = aliased(Adapter)
    has_newer = select(newer.id).where(
        newer.project_id == Adapter.project_id,
        newer.family == Adapter.family,
        newer.version > Adapter.version,
        newer.deleted_at.is_(None),
    )
    heads = _living(account).where(~has_newer.exists())
    return page(session, heads, [Adapter.created_at, Adapter.id], after=after, limit=limit)


def of_heads(session: Session, account: Account, heads: Sequence[Adapter]) -> list[Family]:
    """The families of those that listed() found, in their order."""
    names = {head.family for head in heads if head.family is not None}
    place = func.row_number().over(partition_by=Adapter.family, order_by=Adapter.version.desc()).label("place")
    mine = (*of(Adapter, account), Adapter.deleted_at.is_(None), Adapter.family.in_(names))
    count = func.count().over(partition_by=Adapter.family).label("n")
    places = select(Adapter.id, place, count).where(*mine).subquery()
    first = select(Adapter, places.c.n).join(places, places.c.id == Adapter.id).where(places.c.place <= SHOWN)
    found = dict[str | None, tuple[list[Adapter], int]]()
    for row, n in session.execute(first.order_by(Adapter.version.desc())):
        found.setdefault(row.family, ([], n))[0].append(row)
    return [
        Family(head.family, *found[head.family]) if head.family in found else Family(None, [head], 1) for head in heads
    ]


def _living(account: Account) -> Select[Adapter]:
    return select(Adapter).where(*of(Adapter, account), Adapter.deleted_at.is_(None))
