"""/v1/keys, /v1/usage, /v1/audit and /v1/settings: who may ask, what was used, what was done, what is in force."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api import errors, shapes
from api.deps import AccountDep, AdminDep, After, Id, ResourcesDep
from api.guard import Guarded
from api.in_force import in_force
from core.records import accounts, audit
from core.records.tables import ApiKey, AuditEntry
from core.records.usage_by_day import Tokens, by_day_and_model
from core.specs.spec import Spec

router = APIRouter(prefix="/v1", route_class=Guarded)

Limit = Annotated[int, Query(ge=1, le=100)]
DAY_S = 86_400


class KeyRequest(Spec):
    """A further key."""

    name: str = Field(min_length=1, max_length=200)
    is_admin: bool = False
    expires_after_s: int | None = Field(None, ge=60, le=10 * 366 * DAY_S)


class Searched(BaseModel):
    """Which entries of the audit. since and until: seconds since 1970, the first included, the last not."""

    model_config = ConfigDict(extra="forbid")

    action: str | None = Field(None, max_length=64)
    target: str | None = Field(None, max_length=255)
    key_id: str | None = Field(None, max_length=64)
    since: int | None = Field(None, ge=0, le=10**12)
    until: int | None = Field(None, ge=0, le=10**12)
    after: str | None = Field(None, max_length=255)
    limit: int = Field(20, ge=1, le=100)


@router.get("/keys", response_model=None)
def list_keys(account: AccountDep, resources: ResourcesDep, after: After = None, limit: Limit = 20) -> shapes.Shape:
    """The project's keys, newest first, the revoked ones too. None shows its text."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = accounts.listed_keys(session, account, after=after, limit=limit)
    return shapes.listed(page, _key)


@router.post("/keys", response_model=None)
def create_key(body: KeyRequest, account: AdminDep, resources: ResourcesDep) -> shapes.Shape:
    """A further key of the project. Its text is in this answer and nowhere else."""
    with resources.database.writing() as session:
        key, text = accounts.create_key(
            session,
            account,
            name=body.name,
            environment=resources.settings.environment,
            is_admin=body.is_admin,
            expires_after_s=body.expires_after_s,
        )
        return {**_key(key), "value": text}


@router.delete("/keys/{key_id}", response_model=None)
def revoke_key(key_id: Id, account: AdminDep, resources: ResourcesDep) -> shapes.Shape:
    """From now on it opens nothing. The key that asks stays, so that nobody locks himself out."""
    if key_id == account.key_id:
        raise errors.conflict("This is the very key that asks: use another to revoke it.", code="key_in_use")
    with resources.database.writing() as session:
        if not accounts.revoke_key(session, account, key_id):
            raise errors.not_found("There is no such key.", param="id", code="key_not_found")
    return shapes.deleted(key_id, "key")


@router.get("/usage", response_model=None)
def usage(
    account: AccountDep,
    resources: ResourcesDep,
    bucket: Literal["day"] = "day",  # noqa: ARG001  # the one width that there is, said so that another may come
    days: Annotated[int, Query(ge=1, le=366)] = 30,
) -> shapes.Shape:
    """Tokens served and trained by each model, for each of the last days (UTC), oldest first."""
    with resources.database.session() as session:
        found = by_day_and_model(session, account, days=days)
    data = [
        {"object": "bucket", "start_time": day, "end_time": day + DAY_S, "results": [_tokens(one) for one in tokens]}
        for day, tokens in found.items()
    ]
    return {"object": "page", "data": data, "has_more": False, "next_page": None}


@router.get("/audit", response_model=None)
def entries(account: AccountDep, resources: ResourcesDep, searched: Annotated[Searched, Query()]) -> shapes.Shape:
    """Every privileged action of the project, newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = audit.listed(session, account, **searched.model_dump())
    return shapes.listed(page, _entry)


@router.get("/settings", response_model=None)
def settings(_: AdminDep, resources: ResourcesDep) -> shapes.Shape:
    """What is in force at this process, which base models there are and how long things are kept (null: for ever).

    Read only: the environment sets it.
    """
    told = resources.settings
    return {
        "object": "settings",
        "base_models": [
            {"id": name, "source": source, "is_default": name == told.default_base_model}
            for name, source in told.base_models.items()
        ],
        "retention": {
            "event_retention_days": told.event_retention_days or None,
            "deleted_retention_hours": told.deleted_retention_hours,
        },
        "settings": [{"name": name, "value": value, "about": about} for name, value, about in in_force(told)],
    }


def _key(row: ApiKey) -> shapes.Shape:
    return {
        "id": row.id,
        "object": "key",
        "name": row.name,
        "prefix": row.prefix,
        "is_admin": row.is_admin,
        "created_at": int(row.created_at),
        "last_used_at": shapes.whole(row.last_used_at),
        "expires_at": shapes.whole(row.expires_at),
        "revoked_at": shapes.whole(row.revoked_at),
    }


def _entry(row: AuditEntry) -> shapes.Shape:
    return {
        "id": row.id,
        "object": "audit.entry",
        "action": row.action,
        "target": row.target,
        "key_id": row.key_id,
        "created_at": int(row.created_at),
    }


def _tokens(one: Tokens) -> shapes.Shape:
    return {
        "object": "usage.result",
        "model": one.model,
        "requests": one.requests,
        "prompt_tokens": one.prompt_tokens,
        "completion_tokens": one.completion_tokens,
        "trained_tokens": one.trained_tokens,
    }
