"""The registry of fine-tuned models: which name means which weights, for whom. What is deleted is missing."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from core.blobs import Blob
from core.records import aliases, audit
from core.records.database import clock
from core.records.names import model_name
from core.records.pages import Page, page
from core.records.scope import Account, of
from core.records.tables import Adapter, Checkpoint, Job, new_id
from core.specs.method import BasePrecision

MANY = 500  # contents asked after at once


class Aliased(ValueError):
    """An alias points to the adapter or the checkpoint, so it is not deleted. The message names the alias."""


@dataclass(frozen=True)
class Model:
    """What a model name means: a base model, and the adapter that it wears, if any.

    adapter_id: of an adapter or a checkpoint; sha256 and size_bytes: of its PEFT zip; created_at: None for a base.
    peft_type: of an adapter. base_precision: the base that it was trained on and is served on. members: how many rows
    answer one request, by a vote; more than one for an ensemble. version: FAMILY@vN, of an adapter with a suffix.
    """

    name: str
    base_model: str
    adapter_id: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    created_at: float | None = None
    job_id: str | None = None
    peft_type: str | None = None
    base_precision: BasePrecision = "bf16"
    members: int = 1
    version: str | None = None


def register(
    session: Session,
    account: Account,
    *,
    base_model: str,
    suffix: str | None,
    blob: Blob,
    peft_type: str,
    details: Mapping[str, Any],
) -> Adapter:
    """Remember an adapter that no job of ours made; its blob is stored before. It can be called at once."""
    identifier = new_id("adapter-")
    family, version = aliases.number(session, account.project_id, suffix)
    row = Adapter(
        id=identifier,
        organization_id=account.organization_id,
        project_id=account.project_id,
        name=model_name(base_model, account.organization_slug, suffix, identifier),
        family=family,
        version=version,
        base_model=base_model,
        peft_type=peft_type,
        blob_sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        details=dict(details),
        created_at=clock(session),
    )
    session.add(row)
    audit.note(session, account, "adapter.imported", row.name)
    session.flush()
    return row


def resolve(session: Session, account: Account, name: str, *, base_models: Container[str]) -> Model | None:
    """What name means to the account: a base model's, ft:…, ft:…:ckpt-step-N, FAMILY@vN, FAMILY@ALIAS, an adapter's id.

    base_models: their names, ID or ID@nf4.
    """
    if name in base_models:
        return of_base(name)
    adapter = session.scalars(_adapters(account).where(Adapter.name == name)).one_or_none()
    if adapter is not None:
        return of_adapter(adapter)
    step = _step(session, account, name)
    if step is not None:
        return _of_checkpoint(*step)
    adapter = find(session, account, name)
    return None if adapter is None else of_adapter(adapter)


def find(session: Session, account: Account, name_or_id: str) -> Adapter | None:
    """The account's adapter by its name, its id, its version or an alias; of a checkpoint's alias its job's adapter."""
    either = or_(Adapter.name == name_or_id, Adapter.id == name_or_id)
    found = session.scalars(_adapters(account).where(either)).one_or_none()
    return found or aliases.resolve(session, account, name_or_id)


def made_by_step(session: Session, account: Account, name: str) -> tuple[Adapter, Checkpoint] | None:
    """The account's checkpoint of this name, or that this alias means, and the adapter that its job made.

    None where there is no such checkpoint, or its job has made no adapter, or one that was deleted.
    """
    found = _step(session, account, name)
    if found is None:
        return None
    step, job = found
    adapter = session.scalars(_adapters(account).where(Adapter.job_id == job.id)).one_or_none()
    return None if adapter is None else (adapter, step)


def listed(session: Session, account: Account, *, after: str | None = None, limit: int = 20) -> Page[Adapter]:
    """The account's adapters, newest first."""
    return page(session, _adapters(account), [Adapter.created_at, Adapter.id], after=after, limit=limit)


def models(session: Session, account: Account) -> list[Model]:
    """Every fine-tuned model of the account, checkpoints included, newest first: /v1/models has no pages."""
    found = [of_adapter(adapter) for adapter in session.scalars(_adapters(account))]
    found += [_of_checkpoint(*row) for row in session.execute(_checkpoints(account))]
    return sorted(found, key=lambda model: (model.created_at or 0.0, model.name), reverse=True)


def delete(session: Session, account: Account, name: str) -> bool:
    """Nobody can call the model from now on. With an adapter go its job's checkpoints; a checkpoint goes alone.

    False where the account has no such model. Raises Aliased: who calls it by an alias, or one of the checkpoints that
    go with it, would suddenly find nothing.
    """
    adapter = find(session, account, name)
    if adapter is not None:
        _must_be_free(session, account, adapter)
        adapter.deleted_at = clock(session)
        kept = select(Checkpoint).where(Checkpoint.job_id == adapter.job_id)
    else:
        mine = select(Job.id).where(*of(Job, account))
        kept = select(Checkpoint).where(Checkpoint.model_name == name, Checkpoint.job_id.in_(mine))
        _step_must_be_free(session, account, name)
    rows = session.scalars(kept).all()
    if adapter is None and not rows:
        return False
    for row in rows:
        row.model_name = row.adapter_sha256 = row.adapter_bytes = None
        if adapter is not None:
            row.state_sha256 = row.state_bytes = None
    audit.note(session, account, "model.deleted", name)
    return True


def _must_be_free(session: Session, account: Account, adapter: Adapter) -> None:
    if held := aliases.pointing_to(session, account, [adapter.id]).get(adapter.id):
        raise _aliased(adapter, held, "means this adapter")
    if of_steps := aliases.of_steps(session, account, [adapter.id]).get(adapter.id):
        raise _aliased(adapter, list(of_steps), "means a checkpoint that would go with it")


def _step_must_be_free(session: Session, account: Account, name: str) -> None:
    found = made_by_step(session, account, name)
    if found is None:
        return
    adapter, step = found
    named = aliases.of_steps(session, account, [adapter.id]).get(adapter.id, {})
    if held := [alias for alias, meant in named.items() if meant.checkpoint_id == step.id]:
        raise _aliased(adapter, held, "means this checkpoint")


def _aliased(adapter: Adapter, held: Sequence[str], why: str) -> Aliased:
    names = ", ".join(f"{adapter.family}@{alias}" for alias in held)
    return Aliased(f"{names} {why}: move or remove the alias first")


def deleted(session: Session, digests: Iterable[str]) -> list[str]:
    """Of these contents, those that were an adapter's and are nobody's any more. For who keeps copies."""
    asked, found = list(digests), list[str]()
    for start in range(0, len(asked), MANY):
        some = asked[start : start + MANY]
        living = select(Adapter.blob_sha256).where(Adapter.deleted_at.is_(None))
        kept = select(Checkpoint.adapter_sha256).where(Checkpoint.adapter_sha256.in_(some))
        gone = select(Adapter.blob_sha256).where(
            Adapter.blob_sha256.in_(some),
            Adapter.blob_sha256.not_in(living.where(Adapter.blob_sha256.in_(some))),
            Adapter.blob_sha256.not_in(kept),
        )
        found += session.scalars(gone.distinct())
    return found


def of_base(name: str) -> Model:
    """A base model as what its name means, ID or ID@nf4."""
    base_model, _, precision = name.partition("@")
    return Model(name=name, base_model=base_model, base_precision=_precision(precision))


def of_adapter(adapter: Adapter) -> Model:
    """An adapter as what its name means."""
    return Model(
        name=adapter.name,
        base_model=adapter.base_model,
        adapter_id=adapter.id,
        sha256=adapter.blob_sha256,
        size_bytes=adapter.size_bytes,
        created_at=adapter.created_at,
        job_id=adapter.job_id,
        peft_type=adapter.peft_type,
        base_precision=_precision(adapter.details.get("base_precision")),
        members=int(adapter.details.get("members", 1)),
        version=f"{adapter.family}@v{adapter.version}" if adapter.version else None,
    )


def _of_checkpoint(checkpoint: Checkpoint, job: Job) -> Model:
    method = job.spec.get("method", {})
    return Model(
        name=checkpoint.model_name or "",
        base_model=job.base_model,
        adapter_id=checkpoint.id,
        sha256=checkpoint.adapter_sha256,
        size_bytes=checkpoint.adapter_bytes,
        created_at=checkpoint.created_at,
        job_id=checkpoint.job_id,
        base_precision=_precision(method.get("base_precision")),
        members=int(method.get("ensemble_size", 1)),  # what has none is no ensemble
    )


def _precision(told: object) -> BasePrecision:
    """What a row says of it; one that says nothing is from a time when there was only one."""
    return "nf4" if told == "nf4" else "bf16"


def _adapters(account: Account) -> Select[Adapter]:
    return select(Adapter).where(*of(Adapter, account), Adapter.deleted_at.is_(None))


def _step(session: Session, account: Account, name: str) -> tuple[Checkpoint, Job] | None:
    """The account's checkpoint of this name, or that this alias means, and its job."""
    found = session.execute(_checkpoints(account).where(Checkpoint.model_name == name)).one_or_none()
    return aliases.checkpoint(session, account, name) if found is None else (found[0], found[1])


def _checkpoints(account: Account) -> Select[Checkpoint, Job]:
    usable = (*of(Job, account), Checkpoint.model_name.is_not(None))
    return select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id).where(*usable)
