"""What the service remembers, as tables. Every row of a customer's belongs to an organisation and a project.

Times are seconds since 1970 by the database's own clock (records/database.py: now_s). Ids are opaque and made in
records/table.py, where all that tables share is at home.
"""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from core.records.table import ID, SHA256, Owned, Table, new_id

__all__ = ["Owned", "Table", "new_id"]  # and every table below

JOB_STATES = ("validating_files", "queued", "running", "succeeded", "failed", "cancelled", "paused")
TERMINAL_STATES = ("succeeded", "failed", "cancelled")


class Organization(Table):
    """A tenant. The embedded default has one."""

    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    slug: Mapped[str] = mapped_column(String(64), unique=True)  # the ORG of ft:BASE:ORG:SUFFIX:ID
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float]


class Project(Table):
    """A part of an organisation: keys, files, jobs and adapters belong to one."""

    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float]


class ApiKey(Owned, Table):
    """A bearer key: its hash, never itself."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(32))  # shown to people, so that they can tell keys apart
    key_sha256: Mapped[str] = mapped_column(SHA256, unique=True)
    is_admin: Mapped[bool]
    created_at: Mapped[float]
    last_used_at: Mapped[float | None]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class BrowserSession(Table):
    """A browser that is signed in to the dashboard, as the bearer of a key: the hash of its cookie, never itself."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    token_sha256: Mapped[str] = mapped_column(SHA256, unique=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[float]
    seen_at: Mapped[float]
    expires_at: Mapped[float]
    closed_at: Mapped[float | None]


class SignInCode(Table):
    """What the terminal shows, so that a browser there may sign in once without the key being pasted."""

    __tablename__ = "sign_in_codes"
    code_sha256: Mapped[str] = mapped_column(SHA256, primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    expires_at: Mapped[float]
    used_at: Mapped[float | None]


class File(Owned, Table):
    """An uploaded file. status: uploaded, processed, error."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int]
    blob_sha256: Mapped[str] = mapped_column(SHA256)
    status: Mapped[str] = mapped_column(String(16))
    validation: Mapped[dict[str, Any] | None]  # {"valid", "format", "n_examples", "errors"}
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]
    __table_args__ = (
        Index("files_by_project", "project_id", "created_at", "id"),
        Index("files_by_blob", "blob_sha256"),
    )


class Job(Owned, Table):
    """A fine-tuning job: the truth about it. Moves only through records/jobs.py."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str | None] = mapped_column(String(32))
    base_model: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]  # core.specs.training.TrainSpec
    request: Mapped[dict[str, Any]]  # what the client sent: hyperparameters with their "auto", method, integrations
    suffix: Mapped[str | None] = mapped_column(String(64))
    job_metadata: Mapped[dict[str, Any] | None]
    seed: Mapped[int]
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=3)
    preemptions: Mapped[int] = mapped_column(Integer, default=0)
    barren_deaths: Mapped[int] = mapped_column(Integer, default=0)  # attempts in a row that died without moving step
    lease_epoch: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    trained_tokens: Mapped[int | None]
    progress_at: Mapped[float | None]  # when the present attempt last moved step; null until it has
    cancel_requested_at: Mapped[float | None]
    pause_requested_at: Mapped[float | None]  # of a running job: once it rests its state says so
    run_after: Mapped[float] = mapped_column(default=0.0)
    last_rung_at: Mapped[float | None]
    rings: Mapped[int] = mapped_column(Integer, default=0)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(String(128))
    error_details: Mapped[list[Any] | None]
    result_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    outcome: Mapped[dict[str, Any] | None]  # core.specs.assignment.Outcome, once it has succeeded
    estimate: Mapped[dict[str, Any] | None]  # core.specs.estimate.Estimate; null where nothing could be foretold
    measured: Mapped[dict[str, Any] | None]  # core.specs.estimate.Measured, once it has succeeded
    retry_of: Mapped[str | None] = mapped_column(ID)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    __table_args__ = (
        Index("jobs_by_project", "project_id", "created_at", "id"),
        Index("jobs_to_claim", "state", "created_at", "id"),
    )


class JobEvent(Table):
    """What happened to a job, append-only. type: message or metrics; metrics carry their step."""

    __tablename__ = "job_events"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    lease_epoch: Mapped[int]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(32))  # created, claimed, step, validation, checkpoint, fenced, succeeded …
    message: Mapped[str] = mapped_column(Text)
    step: Mapped[int | None]
    event_data: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]
    __table_args__ = (Index("job_events_by_job", "job_id", "id"),)


class Checkpoint(Table):
    """A step from which a job may go on (state) or which may be served (adapter)."""

    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    lease_epoch: Mapped[int]
    state_sha256: Mapped[str | None] = mapped_column(SHA256)  # zip of the checkpoint folder; null once dropped
    state_bytes: Mapped[int | None]
    model_name: Mapped[str | None] = mapped_column(String(255), unique=True)  # ft:…:ckpt-step-N
    adapter_sha256: Mapped[str | None] = mapped_column(SHA256)
    adapter_bytes: Mapped[int | None]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    __table_args__ = (
        UniqueConstraint("job_id", "step", name="one_checkpoint_per_step"),
        Index("checkpoints_by_state", "state_sha256"),
        Index("checkpoints_by_adapter", "adapter_sha256"),
    )


class Adapter(Owned, Table):
    """A finished adapter: a PEFT zip in the blob store, and the name by which it is called."""

    __tablename__ = "adapters"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)  # ft:BASE:ORG:SUFFIX:ID
    family: Mapped[str | None] = mapped_column(String(64))  # the SUFFIX; null where it is empty
    version: Mapped[int | None]  # in its family, from 1, given once
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), unique=True)  # null of an import
    base_model: Mapped[str] = mapped_column(String(64))
    peft_type: Mapped[str] = mapped_column(String(32))
    blob_sha256: Mapped[str] = mapped_column(SHA256)
    size_bytes: Mapped[int]
    details: Mapped[dict[str, Any]]  # origin, parameters, base precision, of an import its warnings
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
    __table_args__ = (
        Index("adapters_by_project", "project_id", "created_at", "id"),
        Index("adapters_by_version", "project_id", "family", "version", unique=True),
        Index("adapters_by_blob", "blob_sha256"),
    )


class AdapterAlias(Owned, Table):
    """A name within a family of adapters that points to one of them, and may be moved: FAMILY@ALIAS.

    checkpoint_id: of another step of the job that made the adapter, where the alias means that and not what is served.
    """

    __tablename__ = "adapter_aliases"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    family: Mapped[str] = mapped_column(String(64))
    alias: Mapped[str] = mapped_column(String(32))
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    moved_at: Mapped[float]
    __table_args__ = (UniqueConstraint("project_id", "family", "alias", name="one_alias_of_a_name"),)


class Idempotency(Table):
    """A write that a client may repeat: the same key with the same body gets the same answer."""

    __tablename__ = "idempotency"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    route: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_sha256: Mapped[str] = mapped_column(SHA256, primary_key=True)
    request_sha256: Mapped[str] = mapped_column(SHA256)
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[dict[str, Any]]
    expires_at: Mapped[float]


class Usage(Owned, Table):
    """Tokens delivered to one request, written once."""

    __tablename__ = "usage"
    request_id: Mapped[str] = mapped_column(ID, primary_key=True)
    model: Mapped[str] = mapped_column(String(255))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    created_at: Mapped[float]
    __table_args__ = (Index("usage_by_project", "project_id", "created_at", "request_id"),)


class AuditEntry(Owned, Table):
    """A privileged action: who did what to which."""

    __tablename__ = "audit"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    key_id: Mapped[str | None] = mapped_column(ID)
    action: Mapped[str] = mapped_column(String(64))  # file.deleted, job.cancelled, model.deleted, key.created …
    target: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float]
    __table_args__ = (Index("audit_by_project", "project_id", "created_at", "id"),)


class EvaluationRow(Owned, Table):
    """A conversation with the answer that somebody holds right: one line of a dataset of the chat format."""

    __tablename__ = "evaluation_rows"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    messages: Mapped[list[Any]]  # core.specs.dataset.ChatExample
    model: Mapped[str | None] = mapped_column(String(255))  # whose answer it is; null of one that a person wrote
    size_bytes: Mapped[int]  # of its line
    created_at: Mapped[float]
    __table_args__ = (Index("evaluation_rows_by_project", "project_id", "created_at", "id"),)


class Leader(Table):
    """Who sweeps. One row per office."""

    __tablename__ = "leaders"
    office: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    until: Mapped[float]


class Presence(Table):
    """A process that says it lives: an engine (with its url) or a trainer. Gone when beat_at is old."""

    __tablename__ = "presences"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))  # engine, trainer
    url: Mapped[str | None] = mapped_column(String(255))
    base_model: Mapped[str | None] = mapped_column(String(64))
    is_ready: Mapped[bool]
    details: Mapped[dict[str, Any]]
    started_at: Mapped[float]
    beat_at: Mapped[float]
    drain_requested_at: Mapped[float | None]
