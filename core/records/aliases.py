"""Adapters of one suffix as versions of one thing, and the names that move from one version to another.

Every adapter with a suffix is of the family that the suffix names, and has the next number in it, once. FAMILY@vN is
that version, FAMILY@ALIAS the version that the alias points to now: what a client calls while what answers is replaced.
A family may have versions on several base models.
"""

import re
from collections.abc import Collection

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from core.records import audit
from core.records.database import clock
from core.records.names import plain_suffix
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import Adapter, AdapterAlias, Project, new_id

_FORM = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_VERSION = re.compile(r"v([1-9][0-9]{0,17})")
_TAKEN = ("nf4", "bf16")  # BASE@nf4 is a base model


class UnfitAlias(ValueError):
    """No alias can be called so, or the adapter can bear none. The message is for the customer."""


def number(session: Session, project_id: str, suffix: str | None) -> tuple[str | None, int | None]:
    """The family and the next version in it, to be used in this transaction; no other makes one meanwhile."""
    family = plain_suffix(suffix) or None
    if family is None:
        return None, None
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    last = select(func.max(Adapter.version)).where(Adapter.project_id == project_id, Adapter.family == family)
    return family, (session.scalar(last) or 0) + 1


def resolve(session: Session, account: Account, name: str) -> Adapter | None:
    """The account's adapter that FAMILY@vN or FAMILY@ALIAS means now."""
    family, _, tag = name.rpartition("@")
    if not family:
        return None
    mine = _living(account).where(Adapter.family == family)
    if version := _VERSION.fullmatch(tag):
        return session.scalars(mine.where(Adapter.version == int(version.group(1)))).one_or_none()
    pointing = (*of(AdapterAlias, account), AdapterAlias.family == family, AdapterAlias.alias == tag)
    return session.scalars(
        mine.join(AdapterAlias, AdapterAlias.adapter_id == Adapter.id).where(*pointing)
    ).one_or_none()


def versions(
    session: Session, account: Account, family: str, *, after: int | None = None, limit: int = 20
) -> Page[Adapter]:
    """The family's adapters, newest version first."""
    return page(session, _living(account).where(Adapter.family == family), [Adapter.version], after=after, limit=limit)


def move(session: Session, account: Account, adapter: Adapter, alias: str) -> AdapterAlias:
    """Let an alias of the adapter's family point to it from now on. Raises UnfitAlias."""
    if not _FORM.fullmatch(alias) or _VERSION.fullmatch(alias) or alias in _TAKEN:
        raise UnfitAlias(
            "an alias is 1 to 32 of a-z, 0-9, - and _, begins with a letter, and is neither v and a number nor nf4 or "
            "bf16"
        )
    if adapter.family is None:
        raise UnfitAlias("the adapter has no suffix, so it is a version of nothing: give its job a suffix")
    session.execute(select(Project.id).where(Project.id == adapter.project_id).with_for_update(key_share=True))
    row = _pointing(session, account, adapter.family, alias)
    before = "" if row is None else f" from v{session.get_one(Adapter, row.adapter_id).version}"
    if row is None:
        row = AdapterAlias(
            id=new_id("alias-"),
            organization_id=account.organization_id,
            project_id=account.project_id,
            family=adapter.family,
            alias=alias,
        )
    row.adapter_id, row.moved_at = adapter.id, clock(session)
    session.add(row)
    audit.note(session, account, "alias.moved", f"{adapter.family}@{alias}{before} to v{adapter.version}")
    session.flush()
    return row


def remove(session: Session, account: Account, family: str, alias: str) -> bool:
    """The alias means nothing any more. False where the account has no such alias."""
    row = _pointing(session, account, family, alias)
    if row is None:
        return False
    session.delete(row)
    audit.note(session, account, "alias.removed", f"{family}@{alias}")
    return True


def of_family(session: Session, account: Account, family: str) -> dict[str, int]:
    """The family's aliases in their order, each with the version that it means now."""
    mine = select(AdapterAlias.alias, Adapter.version).join(Adapter, Adapter.id == AdapterAlias.adapter_id)
    rows = session.execute(mine.where(*of(AdapterAlias, account), AdapterAlias.family == family))
    return {alias: version or 0 for alias, version in sorted(rows)}


def pointing_to(session: Session, account: Account, adapter_ids: Collection[str]) -> dict[str, list[str]]:
    """The aliases of each of these adapters that has any, in their order."""
    mine = select(AdapterAlias).where(*of(AdapterAlias, account), AdapterAlias.adapter_id.in_(adapter_ids))
    found = dict[str, list[str]]()
    for row in session.scalars(mine.order_by(AdapterAlias.alias)):
        found.setdefault(row.adapter_id, []).append(row.alias)
    return found


def _living(account: Account) -> Select[Adapter]:
    return select(Adapter).where(*of(Adapter, account), Adapter.deleted_at.is_(None))


def _pointing(session: Session, account: Account, family: str, alias: str) -> AdapterAlias | None:
    mine = (*of(AdapterAlias, account), AdapterAlias.family == family, AdapterAlias.alias == alias)
    return session.scalars(select(AdapterAlias).where(*mine)).one_or_none()
