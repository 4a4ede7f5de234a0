"""Adapters as their owner sees them: with their aliases, what they were measured to be, and where they are resident."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from api import shapes
from core.records import aliases, evaluations, residency
from core.records.pages import Page
from core.records.scope import Account
from core.records.tables import Adapter


def shape_of(session: Session, account: Account, adapter: Adapter) -> shapes.Shape:
    """One adapter."""
    return _shapes(session, account, [adapter])[0]


def shapes_of(session: Session, account: Account, page: Page[Adapter]) -> shapes.Shape:
    """A page of adapters."""
    made = {row.id: shape for row, shape in zip(page.rows, _shapes(session, account, page.rows), strict=True)}
    return shapes.listed(page, lambda row: made[row.id])


def _shapes(session: Session, account: Account, rows: Sequence[Adapter]) -> list[shapes.Shape]:
    pointing = aliases.pointing_to(session, account, [row.id for row in rows])
    of_steps = aliases.of_steps(session, account, [row.id for row in rows])
    measured = evaluations.evaluations(session, [row.job_id for row in rows if row.job_id])
    held = residency.holdings(session)
    return [
        shapes.adapter(row)
        | {
            "aliases": pointing.get(row.id, []),
            "checkpoint_aliases": {alias: meant.step for alias, meant in of_steps.get(row.id, {}).items()},
            "evaluation": measured.get(row.job_id or ""),
            "resident": [
                {"worker": one.engine_id, "tier": one.tier, "requests": one.requests}
                for one in held.get(row.blob_sha256, [])
            ],
        }
        for row in rows
    ]
