"""Jobs for a fake trainer: a real database, a real blob store, an account, and what tests ask of them."""

import hashlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import select, update

from core.blobs import MissingBlob, open_store
from core.records import datasets, jobs
from core.records.accounts import account_of, ensure_first_key
from core.records.database import Database
from core.records.tables import TERMINAL_STATES, Adapter, Checkpoint, File, Job, JobEvent
from core.settings import Settings
from core.specs.method import LoraSpec
from core.specs.training import TrainSpec

FAKE_TRAINER = Path(__file__).parents[1] / "faults" / "fake_trainer.py"
BASE = "smollm2-135m-instruct"  # the catalogue's; the fake trainer never opens it
FAST = {
    "lease_s": 60.0,  # no process is kept from the processor for so long; who wants to see one end calls expire()
    "heartbeat_s": 0.3,
    "poll_s": 1.0,
    "sweep_s": 0.5,
    "retry_base_s": 0.05,
    "drain_s": 60.0,
    "checkpoint_steps": 5,
    "jobs_in_step": 1,
}


def spec(steps=5, step_s=0.001, **changes):
    """A run of the fake trainer: steps of step_s seconds."""
    defaults = {
        "base_model": BASE,
        "method": LoraSpec(),
        "n_epochs": steps,
        "batch_size": 1,
        "learning_rate": step_s,
        "lr_scheduler": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "max_grad_norm": 1,
        "max_seq_length": 64,
        "tokens_per_batch": 2048,
        "train_on": "assistant",
        "eval_steps": None,
        "n_checkpoints": 3,
        "seed": 0,
    }
    return TrainSpec.model_validate({**defaults, **changes})


def wait_until(holds, within=120.0, what="it"):
    """The first true answer. Waits on a state, however fast or slow the machine is."""
    deadline = time.monotonic() + within
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"{what} did not come about within {within} s"
        time.sleep(0.02)
    return answer


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class JobBench:
    """One installation in a folder. settings: FAST, and what a test changes."""

    def __init__(self, folder, **changes):
        self.folder = folder
        trainer = (sys.executable, str(FAKE_TRAINER))
        self.values = {**FAST, "data_dir": folder, "trainer_command": trainer, **changes}
        self.settings = Settings(**self.values)
        self.db = Database(self.settings.database)
        self.db.migrate()
        self.blobs = open_store(self.settings)
        key = ensure_first_key(self.db, folder)
        with self.db.session() as session:
            self.account = account_of(session, key)

    def submit(self, faults=None, *, is_validated=False, max_attempts=3, **spec_changes):
        """A queued job; nobody is rung for it."""
        blob = self.blobs.put_bytes(json.dumps(faults or {}).encode() + b"\n")
        with self.db.writing() as session:
            file = datasets.add(session, self.account, filename="t.jsonl", purpose="fine-tune", blob=blob)
            job = jobs.create(
                session,
                self.account,
                spec=spec(**spec_changes),
                request={},
                training_file_id=file.id,
                validation_file_id=file.id if is_validated else None,
                suffix="test",
                max_attempts=max_attempts,
            )
        return job.id

    def job(self, job_id):
        with self.db.session() as session:
            return session.get_one(Job, job_id)

    def set(self, job_id, **values):
        with self.db.writing() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))

    def expire(self, job_id):
        """The lease of who holds the job is over, as if that time had passed. Not while he can renew it."""
        with self.db.writing() as session:
            session.execute(update(Job).where(Job.id == job_id, Job.state == "running").values(lease_until=0))

    def let_go(self):
        """Those who stand go on."""
        (self.folder / "go").touch()

    def cancel(self, job_id):
        with self.db.writing() as session:
            jobs.cancel(session, self.account, job_id)

    def pause(self, job_id):
        with self.db.writing() as session:
            jobs.pause(session, self.account, job_id)

    def resume(self, job_id):
        with self.db.writing() as session:
            jobs.resume(session, self.account, job_id)

    def rows(self, table, job_id):
        with self.db.session() as session:
            return session.scalars(select(table).where(table.job_id == job_id).order_by(table.id)).all()

    def events(self, job_id):
        return self.rows(JobEvent, job_id)

    def kinds(self, job_id):
        return [event.kind for event in self.events(job_id)]

    def steps(self, job_id):
        """(lease epoch, step) of every step told of, in the order told."""
        return [(event.lease_epoch, event.step) for event in self.events(job_id) if event.kind == "step"]

    def checkpoints(self, job_id):
        return sorted(self.rows(Checkpoint, job_id), key=lambda row: row.step)

    def adapters(self, job_id):
        return self.rows(Adapter, job_id)

    def result_file(self, job_id):
        with self.db.session() as session:
            file = session.get_one(File, self.job(job_id).result_file_id)
        return file, b"".join(self.blobs.read(file.blob_sha256)).decode()

    def wait_for(self, job_id, *states, within=120.0):
        return wait_until(lambda: (job := self.job(job_id)).state in states and job, within, f"{job_id} in {states}")

    def wait_for_end(self, job_id, within=120.0):
        return self.wait_for(job_id, *TERMINAL_STATES, within=within)

    def wait_for_step(self, job_id, step, within=120.0):
        return wait_until(lambda: self.job(job_id).step >= step, within, f"step {step}")

    def expected_adapter(self, steps, seed=0):
        """The sha256 of the adapter of an uninterrupted run."""
        return runpy.run_path(str(FAKE_TRAINER))["adapter_sha256"](seed, steps, self.folder)

    def assert_finished_once(self, job_id, steps, seed=0):
        """Succeeded, with one adapter: the bytes of an uninterrupted run. Every step was told of, none wrongly."""
        job = self.job(job_id)
        assert job.state == "succeeded", (job.error_code, job.error_message)
        (adapter,) = self.adapters(job_id)
        assert adapter.blob_sha256 == self.expected_adapter(steps, seed)
        assert self.kinds(job_id).count("succeeded") == 1
        told = [event for event in self.events(job_id) if event.kind == "step"]
        assert {event.step for event in told} == set(range(1, steps + 1))
        losses = {(event.step, event.event_data["train_loss"]) for event in told}
        assert len(losses) == steps, "a step that was repeated said something else"
        self.assert_sound()

    def assert_sound(self):
        """What the records name is in the store, and right; no superseded attempt had the last word."""
        with self.db.session() as session:
            ids = session.scalars(select(Job.id)).all()
        for sha256 in (names := self._named()):
            try:
                assert hashlib.sha256(b"".join(self.blobs.read(sha256))).hexdigest() == sha256
            except MissingBlob:
                # Of a job at work the state of an older checkpoint goes once a newer one is written down.
                assert sha256 not in self._named(), f"{sha256} is named and not there, one of {len(names)}"
        for job_id in ids:
            epochs = [event.lease_epoch for event in self.events(job_id) if event.kind != "fenced"]
            assert epochs == sorted(epochs), "a superseded attempt wrote after the one that took over"

    def _named(self):
        with self.db.session() as session:
            named = [*session.scalars(select(Adapter.blob_sha256)), *session.scalars(select(File.blob_sha256))]
            named += filter(None, session.scalars(select(Checkpoint.state_sha256)))
            return named + list(filter(None, session.scalars(select(Checkpoint.adapter_sha256))))

    def strays(self):
        """The processes that were started with this installation's folder for temporary files, and live."""
        mark, found = f"TMPDIR={self.folder}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in environment and int(path.name) != os.getpid() and is_running(int(path.name)):
                found.append(int(path.name))
        return found

    def close(self):
        """No process may be left behind; what is left is killed, and is a failure."""
        left = self.strays()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.db.close()
        assert left == []
