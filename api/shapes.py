"""Rows as the stock openai clients read them. Field names, order and null are OpenAI's; our own fields stand last."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from core.records.accounts import Account
from core.records.adapters import Model
from core.records.pages import Page
from core.records.queue import Place
from core.records.tables import Adapter, Checkpoint, File, Job, JobEvent
from core.specs.training import TrainSpec

Row = TypeVar("Row")
Shape = dict[str, Any]

CHECKPOINT_METRICS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "valid_exact_match",
    "valid_accuracy",
    "valid_macro_f1",
    "train_reward_margin",
    "train_reward_accuracy",
    "valid_reward_margin",
    "valid_reward_accuracy",
)
# What OpenAI's client calls hyperparameters; all else of a TrainSpec but these and the method is `training`.
_HYPERPARAMETERS = {"n_epochs", "batch_size", "learning_rate_multiplier"}
_ELSEWHERE = {"base_model", "method", "seed", "init_adapter_sha256", "continue_from", "continue_from_sha256", "dpo"}


def listed(page: Page[Row], shape: Callable[[Row], Shape]) -> Shape:
    """A cursor page. has_more is what tells the client to stop."""
    items = [shape(row) for row in page.rows]
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": page.has_more,
    }


def file(row: File) -> Shape:
    """A file object."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": int(row.created_at),
        "expires_at": whole(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "status_details": None,
        "validation": row.validation,
    }


def job(row: Job, adapter_name: str | None, place: Place | None = None) -> Shape:
    """A fine_tuning.job object; "auto" has become the value in force. adapter_name: once it has succeeded.

    place: while it waits.
    """
    spec = TrainSpec.model_validate(row.spec)
    values = spec.model_dump(mode="json")
    hyperparameters = {name: values[name] for name in values if name in _HYPERPARAMETERS}
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": int(row.created_at),
        "error": _job_error(row),
        "fine_tuned_model": adapter_name,
        "started_at": whole(row.started_at),
        "finished_at": whole(row.finished_at),
        "hyperparameters": hyperparameters,
        "model": row.base_model,
        "organization_id": row.organization_id,
        "result_files": [row.result_file_id] if row.result_file_id else [],
        "seed": row.seed,
        "status": row.state,
        "trained_tokens": row.trained_tokens,
        "training_file": row.training_file_id,
        "validation_file": row.validation_file_id,
        "estimated_finish": _estimated_finish(row),
        "integrations": [],
        "metadata": row.job_metadata,
        "method": _method(spec, hyperparameters),
        "suffix": row.suffix,
        "phase": row.phase,
        "peft": values["method"],
        "training": {name: values[name] for name in values if name not in _HYPERPARAMETERS | _ELSEWHERE},
        "step": row.step,
        "total_steps": row.total_steps,
        "attempt": row.attempt,
        "outcome": row.outcome,
        "estimate": row.estimate,
        "measured": row.measured,
        "continue_from": spec.continue_from,
        "retry_of": row.retry_of,
        "queue": None if place is None else {"position": place.position, "waits_s": round(place.waits_s, 1)},
        "cancel_requested_at": whole(row.cancel_requested_at),
        "pause_requested_at": whole(row.pause_requested_at),
    }


def resolved(spec: TrainSpec) -> Shape:
    """A run's values, every "auto" resolved, under the names by which a job asks for them."""
    values = spec.model_dump(mode="json")
    return {
        "hyperparameters": {name: values[name] for name in values if name in _HYPERPARAMETERS},
        "peft": values["method"],
        "training": {name: values[name] for name in values if name not in _HYPERPARAMETERS | _ELSEWHERE},
    }


def _method(spec: TrainSpec, hyperparameters: Shape) -> Shape:
    """OpenAI's method: from examples, or from pairs."""
    if spec.dpo is None:
        return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return {"type": "dpo", "dpo": {"hyperparameters": {**hyperparameters, "beta": spec.dpo.beta}}}


def event(row: JobEvent) -> Shape:
    """A fine_tuning.job.event object."""
    return {
        "id": event_id(row.id),
        "object": "fine_tuning.job.event",
        "created_at": int(row.created_at),
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": row.event_data or {},
        "kind": row.kind,
        "step": row.step,
    }


def event_id(number: int) -> str:
    """Events are numbered in the database and named outside."""
    return f"ftevent-{number}"


def event_number(event_id: str) -> int | None:
    """The other way round; None for what is no event's id."""
    digits = event_id.removeprefix("ftevent-")
    is_ours = event_id.startswith("ftevent-") and digits.isascii() and digits.isdigit() and len(digits) <= 18  # noqa: PLR2004
    return int(digits) if is_ours else None


def checkpoint(row: Checkpoint) -> Shape:
    """A fine_tuning.job.checkpoint object, of one that may be used as a model."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(row.created_at),
        "fine_tuned_model_checkpoint": row.model_name,
        "fine_tuning_job_id": row.job_id,
        "metrics": {
            "step": row.step,
            **{name: row.metrics[name] for name in CHECKPOINT_METRICS if name in row.metrics},
        },
        "step_number": row.step,
    }


def model(row: Model, account: Account) -> Shape:
    """A model object, of a base model, an adapter or a checkpoint."""
    is_base = row.adapter_id is None
    return {
        "id": row.name,
        "object": "model",
        "created": int(row.created_at or 0),
        "owned_by": "graft" if is_base else account.organization_id,
        "shutdown_date": None,
        "parent": None if is_base else row.base_model,
        "peft_type": row.peft_type,
        "base_precision": row.base_precision,
        "adapter_id": row.adapter_id,
        "version": row.version,
        "fine_tuning_job_id": row.job_id,
    }


def adapter(row: Adapter) -> Shape:
    """An adapter object: our own."""
    return {
        "id": row.id,
        "object": "adapter",
        "name": row.name,
        "family": row.family,
        "version": row.version,
        "created_at": int(row.created_at),
        "base_model": row.base_model,
        "peft_type": row.peft_type,
        "fine_tuning_job_id": row.job_id,
        "origin": row.details.get("origin", "training"),
        "base_precision": row.details.get("base_precision"),
        "parameters": row.details.get("parameters"),
        "bytes": row.size_bytes,
        "sha256": row.blob_sha256,
        "warnings": row.details.get("warnings", []),
        "details": row.details,
    }


def deleted(identifier: str, kind: str) -> Shape:
    """What every delete answers."""
    return {"id": identifier, "object": kind, "deleted": True}


def plain_list(items: Iterable[Shape]) -> Shape:
    """A list that is never paged."""
    return {"object": "list", "data": list(items)}


def _job_error(row: Job) -> Shape | None:
    if row.error_code is None:
        return None
    return {
        "code": row.error_code,
        "message": row.error_message or "",
        "param": row.error_param,
        "details": row.error_details or [],
    }


def _estimated_finish(row: Job) -> int | None:
    """From the pace since the first start; unknown until the present attempt has made a step."""
    if row.state != "running" or not (row.progress_at and row.started_at and row.total_steps and row.step):
        return None
    step_s = max(0.0, row.progress_at - row.started_at) / row.step
    return int(row.progress_at + step_s * (row.total_steps - row.step))


def whole(seconds: float | None) -> int | None:
    """A time as OpenAI writes it."""
    return None if seconds is None else int(seconds)
