"""Offices that one process holds at a time: who sweeps, who keeps house."""

from sqlalchemy import or_
from sqlalchemy.orm import Session

from core.records.database import insert_or, now_s
from core.records.tables import Leader


def take(session: Session, office: str, owner: str, term_s: float, *, may_renew: bool = True) -> bool:
    """Whether owner holds the office from now on for term_s: nobody does, its term is over or, with may_renew, it did.

    Without may_renew a term is a pause too: not even the holder may take the office again before its end.
    """
    until = now_s() + term_s
    is_free = Leader.until < now_s()
    statement = insert_or(session, Leader).values(office=office, owner=owner, until=until)
    statement = statement.on_conflict_do_update(
        index_elements=[Leader.office],
        set_={"owner": owner, "until": until},
        where=or_(Leader.owner == owner, is_free) if may_renew else is_free,
    )
    return session.execute(statement.returning(Leader.office)).one_or_none() is not None
