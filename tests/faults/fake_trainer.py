"""A trainer child without a model: worker.trainer_process's protocol, files and exit codes, and bytes known in advance.

It trains for spec.n_epochs steps of spec.learning_rate seconds. The training file's first line, a JSON object, may ask
for a fault: {"user_error": true}, {"not_finite_at": step}, {"die_at": step} (always), {"needs_tokens_at_most": n}
(out of memory above), {"hang_at": step}, {"deaf": true} (SIGTERM changes nothing), {"grandchild": true}.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

from core.specs.assignment import (
    DRAINED,
    FINISHED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    USER_ERROR,
    Assignment,
    CheckpointReport,
    FailedReport,
    FinishedReport,
    PhaseReport,
    Report,
    StepReport,
    ValidationReport,
)
from worker.failpoints import reached


def say(report: Report) -> None:
    sys.stdout.write(report.model_dump_json() + "\n")
    sys.stdout.flush()


def die_with_supervisor() -> None:
    sys.stdin.read()
    os._exit(9)


def fold(state: str, step: int) -> str:
    return hashlib.sha256(f"{state}/{step}".encode()).hexdigest()


def write_adapter(path: Path, state: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("adapter_config.json"), json.dumps({"peft_type": "LORA"}))
        archive.writestr(zipfile.ZipInfo("adapter_model.safetensors"), state * 100)
    return path


def adapter_sha256(seed: int, steps: int, scratch: Path) -> str:
    """What an uninterrupted run writes."""
    state = str(seed)
    for step in range(1, steps + 1):
        state = fold(state, step)
    return hashlib.sha256(write_adapter(scratch / "expected.zip", state).read_bytes()).hexdigest()


class FakeTrainer:
    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.spec = assignment.spec
        self.total = assignment.spec.n_epochs
        self.faults = json.loads(assignment.training_file.read_text().splitlines()[0])
        self.folder = assignment.work_dir / "checkpoints"
        self.is_draining = False
        self.step, self.state = self.resume()

    def resume(self) -> tuple[int, str]:
        for folder in sorted(self.folder.glob("ck-*"), reverse=True):
            with contextlib.suppress(OSError, ValueError):
                content = (folder / "state.json").read_bytes()
                if hashlib.sha256(content).hexdigest() == (folder / "manifest.json").read_text():
                    kept = json.loads(content)
                    return kept["step"], kept["state"]
            folder.rename(folder.with_name(f"corrupt-{folder.name}"))
        return 0, str(self.spec.seed)

    def checkpoint(self) -> None:
        whole = self.folder / f"ck-{self.step:06d}-e{self.assignment.lease_epoch}"
        fresh = self.folder / f"tmp-{os.getpid()}"
        fresh.mkdir(parents=True)
        content = json.dumps({"step": self.step, "state": self.state}).encode()
        (fresh / "state.json").write_bytes(content)
        (fresh / "manifest.json").write_text(hashlib.sha256(content).hexdigest())
        if whole.exists():
            shutil.rmtree(fresh)
        else:
            fresh.rename(whole)
        adapter = write_adapter(self.assignment.work_dir / "adapters" / f"step-{self.step}.zip", self.state)
        say(CheckpointReport(step=self.step, path=whole, adapter=adapter, metrics={"train_loss": self.loss}))

    @property
    def loss(self) -> float:
        return int(self.state[:4], 16) / 65536

    def run(self) -> int:
        say(PhaseReport(phase="loading_model"))
        if self.faults.get("grandchild"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        if self.faults.get("user_error"):
            detail = {"line": 3, "tokens": 99, "limit": 64}
            say(
                FailedReport(
                    code="row_too_long", message="line 3 is too long", param="training_file", details=(detail,)
                )
            )
            return USER_ERROR
        if self.spec.tokens_per_batch > self.faults.get("needs_tokens_at_most", 1 << 30):
            return OUT_OF_MEMORY
        say(PhaseReport(phase="training"))
        while self.step < self.total:
            if self.is_draining:
                self.checkpoint()
                return DRAINED
            if (code := self.turn()) is not None:
                return code
        adapter = write_adapter(self.assignment.work_dir / "adapters" / "final.zip", self.state)
        details = {"parameters": 100, "peft_type": "LORA", "base_precision": "fp32"}
        metrics = {"train_loss": self.loss}
        say(
            FinishedReport(
                step=self.step, adapter=adapter, trained_tokens=self.step * 10, metrics=metrics, details=details
            )
        )
        return FINISHED

    def turn(self) -> int | None:
        time.sleep(self.spec.learning_rate)
        self.step += 1
        self.state = fold(self.state, self.step)
        self.crash_where_asked()
        if self.step == self.faults.get("not_finite_at"):
            return NOT_FINITE
        say(
            StepReport(
                step=self.step,
                total_steps=self.total,
                epoch=self.step / self.total,
                train_loss=self.loss,
                train_mean_token_accuracy=0.5,
                learning_rate=self.spec.learning_rate,
                grad_norm=1.0,
                tokens=10,
                trained_tokens=self.step * 10,
                tokens_per_s=10 / self.spec.learning_rate,
                memory_bytes=1000,
            )
        )
        if self.assignment.validation_file and self.spec.eval_steps and self.step % self.spec.eval_steps == 0:
            valid = {"valid_loss": self.loss + 1, "valid_mean_token_accuracy": 0.25}
            say(ValidationReport(step=self.step, total_steps=self.total, **valid))
        if self.step % int(os.environ["GRAFT_CHECKPOINT_STEPS"]) == 0 and self.step < self.total:
            self.checkpoint()
        return None

    def crash_where_asked(self) -> None:
        reached(f"step:{self.step}", self.assignment.lease_epoch)
        if self.step == self.faults.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step == self.faults.get("hang_at"):
            time.sleep(600)

    def drain(self, *_: object) -> None:
        self.is_draining = not self.faults.get("deaf")


def main() -> int:
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    threading.Thread(target=die_with_supervisor, daemon=True).start()
    trainer = FakeTrainer(assignment)
    signal.signal(signal.SIGTERM, trainer.drain)
    return trainer.run()


if __name__ == "__main__":
    sys.exit(main())
