"""/admin/usage and /admin/settings: what was trained and served, day by day, and what is in force."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import errors
from api.admin.door import Page
from api.admin.render import render, stamp
from api.deps import AccountDep, ResourcesDep
from api.in_force import in_force
from core.records import idempotency, presences
from core.records.tables import Presence
from core.records.usage_by_day import Tokens, by_day_and_model

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

Days = Annotated[Literal["7", "30", "90"], Query()]
HOUR_S = 3600
CSV_HEAD = ("day", "model", "requests", "prompt_tokens", "completion_tokens", "trained_tokens")


@dataclass(frozen=True)
class Series:
    """One model's tokens, or all models': of each day, oldest first. Of model "" everything together."""

    model: str
    requests: int
    read: int
    written: int
    trained: int
    served_by_day: list[int]
    trained_by_day: list[int]


@router.get("/usage", response_model=None)
def usage(request: Request, account: AccountDep, resources: ResourcesDep, days: Days = "30") -> Response:
    """Tokens served and trained, by day and by model."""
    with resources.database.session() as session:
        found = by_day_and_model(session, account, days=int(days))
    names = {one.model for tokens in found.values() for one in tokens}
    models = sorted((_series(found, name) for name in names), key=lambda one: -(one.read + one.written + one.trained))
    return render(
        request,
        "usage.html",
        days=list(found),
        chosen=days,
        choices=("7", "30", "90"),
        models=models,
        all=_series(found),
    )


@router.get("/usage/csv", response_model=None)
def as_csv(account: AccountDep, resources: ResourcesDep, days: Days = "30") -> Response:
    """The same as a table for a spreadsheet: a line for each day and model."""
    with resources.database.session() as session:
        found = by_day_and_model(session, account, days=int(days))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(CSV_HEAD)
    for day, tokens in found.items():
        for one in tokens:
            counts = (one.requests, one.prompt_tokens, one.completion_tokens, one.trained_tokens)
            table.writerow((stamp(day)[:10], one.model, *counts))
    headers = {"content-disposition": 'attachment; filename="usage.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


@router.get("/settings", response_model=None)
def settings(request: Request, account: AccountDep, resources: ResourcesDep) -> Response:
    """What is in force here. Secrets are not shown, and only administrators see the rest."""
    if not account.is_admin:
        raise errors.forbidden("Only an administrator's key may see the settings.")
    told = resources.settings
    with resources.database.session() as session:
        serving = [one for one in presences.alive(session, "engine") if one.is_ready]
    served = {name: sorted(_precision(one) for one in serving if one.base_model == name) for name in told.base_models}
    return render(
        request,
        "settings.html",
        settings=in_force(told),
        bases=told.base_models,
        default=told.default_base_model,
        served=served,
        session_s=told.session_s,
        idle_s=told.session_idle_s,
        repeated_s=idempotency.KEPT_S,
        event_days=told.event_retention_days,
        deleted_s=told.deleted_retention_hours * HOUR_S,
    )


def _series(found: Mapping[int, Sequence[Tokens]], model: str = "") -> Series:
    """model: "" for all of them."""
    by_day = [[one for one in tokens if not model or one.model == model] for tokens in found.values()]
    flat = [one for tokens in by_day for one in tokens]
    return Series(
        model=model,
        requests=sum(one.requests for one in flat),
        read=sum(one.prompt_tokens for one in flat),
        written=sum(one.completion_tokens for one in flat),
        trained=sum(one.trained_tokens for one in flat),
        served_by_day=[sum(one.prompt_tokens + one.completion_tokens for one in tokens) for tokens in by_day],
        trained_by_day=[sum(one.trained_tokens for one in tokens) for tokens in by_day],
    )


def _precision(engine: Presence) -> str:
    return str(engine.details.get("base_precision", "bf16"))
