"""Whose rows: the one condition that every query of a customer's rows carries."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement

from core.records.tables import Owned


@dataclass(frozen=True)
class Account:
    """Who asks: a key, and the project of the organisation that it belongs to.

    was_used_lately: whether the key's last use is written down already, to within a minute.
    """

    organization_id: str
    project_id: str
    key_id: str | None
    is_admin: bool
    organization_slug: str
    was_used_lately: bool = True


def of(table: type[Owned], account: Account) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The rows of table that are this account's. Somebody else's are as if they were not."""
    return table.organization_id == account.organization_id, table.project_id == account.project_id
