"""Adapters of one suffix as versions of one thing, and the names that move from one version to another.

Every adapter with a suffix is of the family that the suffix names, and has the next number in it, once. FAMILY@vN is
that version, FAMILY@ALIAS the version that the alias points to now: what a client calls while what answers is replaced.
A family may have versions on several base models.

An alias may also mean a checkpoint of the job that made a version: another of its steps. Only a job that has succeeded
has a version, and such a job thins its checkpoints no more, so that what an alias means goes by deletion alone, which
adapters.py beside this refuses.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from core.records import audit
from core.records.database import clock
from core.records.names import plain_suffix
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import Adapter, AdapterAlias, Checkpoint, Job, Project, new_id

_FORM = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_VERSION = re.compile(r"v([1-9][0-9]{0,17})")
_TAKEN = ("nf4", "bf16")  # BASE@nf4 is a base model


class UnfitAlias(ValueError):
    """No alias can be called so, or the adapter can bear none. The message is for the customer."""


@dataclass(frozen=True)
class Meaning:
    """What an alias means: a version, and of its job a step, where it is not the one that is served."""

    version: int
    step: int | None = None
    checkpoint_id: str | None = None

    def __str__(self) -> str:
        return f"v{self.version}" if self.step is None else f"v{self.version} step {self.step}"


def number(session: Session, project_id: str, suffix: str | None) -> tuple[str | None, int | None]:
    """The family and the next version in it, to be used in this transaction; no other makes one meanwhile."""
    family = plain_suffix(suffix) or None
    if family is None:
        return None, None
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    last = select(func.max(Adapter.version)).where(Adapter.project_id == project_id, Adapter.family == family)
    return family, (session.scalar(last) or 0) + 1


def resolve(session: Session, account: Account, name: str) -> Adapter | None:
    """The account's adapter that FAMILY@vN or FAMILY@ALIAS means now, or of whose job it means a checkpoint."""
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


def checkpoint(session: Session, account: Account, name: str) -> tuple[Checkpoint, Job] | None:
    """The checkpoint that FAMILY@ALIAS means now, and its job. None where it means a version, or nothing."""
    family, _, alias = name.rpartition("@")
    row = _pointing(session, account, family, alias) if family else None
    if row is None or row.checkpoint_id is None:
        return None
    found = session.get_one(Checkpoint, row.checkpoint_id)
    return found, session.get_one(Job, found.job_id)


def versions(
    session: Session, account: Account, family: str, *, after: int | None = None, limit: int = 20
) -> Page[Adapter]:
    """The family's adapters, newest version first."""
    return page(session, _living(account).where(Adapter.family == family), [Adapter.version], after=after, limit=limit)


def move(
    session: Session, account: Account, adapter: Adapter, alias: str, *, step: Checkpoint | None = None
) -> AdapterAlias:
    """Let an alias of the adapter's family point to it from now on, or to a step of its job. Raises UnfitAlias."""
    if not _FORM.fullmatch(alias) or _VERSION.fullmatch(alias) or alias in _TAKEN:
        raise UnfitAlias(
            "an alias is 1 to 32 of a-z, 0-9, - and _, begins with a letter, and is neither v and a number nor nf4 or "
            "bf16"
        )
    if adapter.family is None:
        raise UnfitAlias("the adapter has no suffix, so it is a version of nothing: give its job a suffix")
    session.execute(select(Project.id).where(Project.id == adapter.project_id).with_for_update(key_share=True))
    row = _pointing(session, account, adapter.family, alias)
    before = "" if row is None else f" from {_meaning(session, row)}"
    if row is None:
        row = AdapterAlias(
            id=new_id("alias-"),
            organization_id=account.organization_id,
            project_id=account.project_id,
            family=adapter.family,
            alias=alias,
        )
    row.adapter_id, row.checkpoint_id, row.moved_at = adapter.id, step.id if step else None, clock(session)
    session.add(row)
    after = _meaning(session, row)
    audit.note(session, account, "alias.moved", f"{adapter.family}@{alias}{before} to {after}")
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


def of_family(session: Session, account: Account, family: str) -> dict[str, Meaning]:
    """The family's aliases in their order, each with what it means now."""
    rows = session.execute(_with_meanings(account).where(AdapterAlias.family == family).order_by(AdapterAlias.alias))
    return {row.alias: Meaning(version or 0, step, row.checkpoint_id) for row, version, step in rows}


def pointing_to(session: Session, account: Account, adapter_ids: Collection[str]) -> dict[str, list[str]]:
    """The aliases of each of these adapters that has any, in their order. Those of checkpoints are not among them."""
    mine = select(AdapterAlias).where(*of(AdapterAlias, account), AdapterAlias.adapter_id.in_(adapter_ids))
    found = dict[str, list[str]]()
    for row in session.scalars(mine.where(AdapterAlias.checkpoint_id.is_(None)).order_by(AdapterAlias.alias)):
        found.setdefault(row.adapter_id, []).append(row.alias)
    return found


def of_steps(session: Session, account: Account, adapter_ids: Collection[str]) -> dict[str, dict[str, Meaning]]:
    """Of each of these adapters, the aliases that mean a checkpoint of its job, in their order."""
    mine = _with_meanings(account).where(AdapterAlias.adapter_id.in_(adapter_ids))
    found = dict[str, dict[str, Meaning]]()
    for row, version, step in session.execute(mine.where(Checkpoint.id.is_not(None)).order_by(AdapterAlias.alias)):
        found.setdefault(row.adapter_id, {})[row.alias] = Meaning(version or 0, step, row.checkpoint_id)
    return found


def _with_meanings(account: Account) -> Select[AdapterAlias, int | None, int | None]:
    """Each alias, the version that it means, and the step, if it means one."""
    rows = select(AdapterAlias, Adapter.version, Checkpoint.step).join(Adapter, Adapter.id == AdapterAlias.adapter_id)
    return rows.outerjoin(Checkpoint, Checkpoint.id == AdapterAlias.checkpoint_id).where(*of(AdapterAlias, account))


def _meaning(session: Session, row: AdapterAlias) -> Meaning:
    step = session.get_one(Checkpoint, row.checkpoint_id).step if row.checkpoint_id else None
    return Meaning(session.get_one(Adapter, row.adapter_id).version or 0, step, row.checkpoint_id)


def _living(account: Account) -> Select[Adapter]:
    return select(Adapter).where(*of(Adapter, account), Adapter.deleted_at.is_(None))


def _pointing(session: Session, account: Account, family: str, alias: str) -> AdapterAlias | None:
    mine = (*of(AdapterAlias, account), AdapterAlias.family == family, AdapterAlias.alias == alias)
    return session.scalars(select(AdapterAlias).where(*mine)).one_or_none()
