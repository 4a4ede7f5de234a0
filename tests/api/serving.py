"""The front end as clients meet it: a real server, a real database and blob folder, and engines without a model."""

import io
import json
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import httpx
from fake_engine import FakeEngine, Served

from api.main import create_app
from core.blobs import open_store
from core.records import accounts, jobs, presences
from core.records.accounts import Account
from core.records.database import Database
from core.records.tables import new_id
from core.settings import Settings

BASE = "smollm2-135m-instruct"


CHAT_LINE = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}) + "\n"


@dataclass
class Service:
    settings: Settings
    database: Database
    url: str
    account: Account
    key: str
    http: httpx.Client

    def stranger(self) -> httpx.Client:
        """Another organisation's client."""
        _, key = accounts.create_project(self.database, slug="strangers", name="Strangers", environment="local")
        return client(self.url, key)

    def upload(self, content: bytes | str = CHAT_LINE * 3, purpose: str = "fine-tune", name: str = "t.jsonl"):
        content = content.encode() if isinstance(content, str) else content
        return self.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})

    def job(self, **fields):
        if "training_file" not in fields:
            fields["training_file"] = self.upload().json()["id"]
        body = {"model": BASE, **fields}
        return self.http.post("/v1/fine_tuning/jobs", json=body)

    def adapter(
        self, suffix: str = "support", precision: str = "bf16", *, details: dict | None = None, **fields
    ) -> dict:
        """A job run to its end, as a worker would write it down: one checkpoint and an adapter."""
        fields.setdefault("peft", {"type": "lora", "base_precision": precision})
        job_id = self.job(suffix=suffix, **fields).json()["id"]
        blob = open_store(self.settings).put_bytes(peft_zip(suffix))
        held = jobs.claim(self.database, owner="test", lease_s=60, job_id=job_id)
        data = {"step": 1, "total_steps": 2, "train_loss": 1.5, "train_mean_token_accuracy": 0.5}
        step = jobs.Event("step", "Step 1/2: training loss=1.50", type="metrics", step=1, data=data)
        jobs.record(self.database, held, [step])
        jobs.record_checkpoint(
            self.database, held, step=1, metrics={"train_loss": 1.5, "learning_rate": 1}, adapter=blob
        )
        told = {"parameters": 9, "peft_type": "LORA", "base_precision": precision} | (details or {})
        jobs.succeed(
            self.database,
            held,
            adapter=blob,
            peft_type=told.pop("peft_type"),
            details=told,
            step=2,
            trained_tokens=42,
        )
        return self.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()


def client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def peft_zip(text: str) -> bytes:
    """The same bytes for the same text, whenever it is asked for."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("adapter_config.json"), json.dumps({"peft_type": "LORA", "of": text}))
        archive.writestr(zipfile.ZipInfo("adapter_model.safetensors"), bytes(range(256)) * 8)
    return content.getvalue()


@contextmanager
def serving(settings):
    """The front end on a free port, with one organisation that has a key."""
    database = Database(settings.database)
    account, key = accounts.create_project(database, slug="acme", name="Acme", environment="local", is_admin=True)
    with Served(create_app(settings)) as served, client(served.url, key) as http:
        yield Service(settings, database, served.url, account, key, http)
    database.close()


@contextmanager
def running(service, precision="bf16", **about):
    """An engine that serves, and says so, as long as the block lasts."""
    fake = FakeEngine(service.settings.engine_token)
    presence_id, is_over = new_id("engine-"), threading.Event()

    def beat():
        details = {"context": fake.context, "vocabulary": 12, "base_precision": precision, **about}
        said = {"role": "engine", "is_ready": True, "details": details, "url": fake.url, "base_model": BASE}
        presences.beat(service.database, presence_id, **said)

    def keep_beating():
        while not is_over.wait(2):
            beat()

    # A test that is kept from the processor for some seconds has its engine all the same.
    with patch.dict(presences.alive.__kwdefaults__, stale_s=120.0), Served(fake.app()) as served:
        fake.url = served.url
        beat()
        thread = threading.Thread(target=keep_beating)
        thread.start()
        try:
            yield fake
        finally:
            is_over.set()
            thread.join()
