"""A page of rows by keyset: never by offset, so that it is as fast at the end as at the start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

Row = TypeVar("Row")


class UnknownCursor(ValueError):
    """The row after which a page was to begin is not there."""


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows in order, and whether more follow."""

    rows: Sequence[Row]
    has_more: bool


def page(
    session: Session,
    statement: Select[Row],
    keys: Sequence[InstrumentedAttribute[Any]],
    *,
    after: Any = None,  # noqa: ANN401  # the value of the last key, whatever its type
    limit: int = 20,
    is_ascending: bool = False,
) -> Page[Row]:
    """The rows of statement by keys, newest first unless is_ascending, from behind the row whose last key is after.

    keys: the columns of an index, the last of them unique. statement: already scoped, so a foreign cursor is unknown.
    """
    if after is not None:
        cursor = session.execute(statement.where(keys[-1] == after).with_only_columns(*keys)).one_or_none()
        if cursor is None:
            raise UnknownCursor(f"nothing here has the id {after!r} given in 'after'")
        row, behind = tuple_(*keys), tuple_(*cursor)
        statement = statement.where(row > behind if is_ascending else row < behind)
    order = [key.asc() if is_ascending else key.desc() for key in keys]
    rows = session.scalars(statement.order_by(*order).limit(limit + 1)).all()
    return Page(rows=rows[:limit], has_more=len(rows) > limit)
