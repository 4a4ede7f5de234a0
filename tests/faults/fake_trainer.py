"""A trainer child without a model: worker.trainer_process's protocol, files and exit codes, and bytes known in advance.

Jobs in step take turns; a turn lasts as long as the longest of their steps would.

It trains for spec.n_epochs steps of spec.learning_rate seconds. The training file's first line, a JSON object, may ask
for a fault: {"user_error": true}, {"not_finite_at": step}, {"die_at": step} (always), {"needs_tokens_at_most": n}
(out of memory above), {"hang_at": step}, {"deaf": true} (SIGTERM changes nothing), {"grandchild": true},
{"stand_at": step} (its first attempt goes no further until asked to leave, or until a file "go" lies in TMPDIR: a job
that still runs, however long its test is kept from the processor).
"""

import contextlib
import hashlib
import json
import os
import queue
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
    ORDER,
    OUT_OF_MEMORY,
    USER_ERROR,
    Assignment,
    CheckpointReport,
    Ended,
    FailedReport,
    FinishedReport,
    Leave,
    PhaseReport,
    RateReport,
    Report,
    Said,
    StepReport,
    Told,
    ValidationReport,
)
from core.specs.rate_search import Candidate, FoundRate, RateSearch
from worker.failpoints import reached


def tell(told: Told) -> None:
    sys.stdout.write(told.model_dump_json() + "\n")
    sys.stdout.flush()


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


def found_rate(search: RateSearch) -> FoundRate:
    """The lowest, whatever the data."""
    losses = [Candidate(rate=rate, losses=(float(place),)) for place, rate in enumerate(search.rates, start=1)]
    judged = {"judged_on": "held_out_rows", "judged_rows": 1, "tokens": 10, "judged_tokens": 5, "share": 0.5}
    return FoundRate.model_validate({"rate": search.rates[0], "candidates": losses, **judged})


class FakeTrainer:
    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.spec = assignment.spec
        self.total = assignment.spec.n_epochs
        self.faults = json.loads(assignment.training_file.read_text().splitlines()[0])
        self.folder = assignment.work_dir / "checkpoints"
        self.is_draining = False
        self.step, self.state = self.resume()

    def say(self, report: Report) -> None:
        tell(Said(job_id=self.assignment.job_id, report=report))

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
        self.say(CheckpointReport(step=self.step, path=whole, adapter=adapter, metrics={"train_loss": self.loss}))

    @property
    def loss(self) -> float:
        return int(self.state[:4], 16) / 65536

    def begin(self) -> int | None:
        self.say(PhaseReport(phase="loading_model"))
        if self.faults.get("grandchild"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        if self.faults.get("user_error"):
            detail = {"line": 3, "tokens": 99, "limit": 64}
            self.say(
                FailedReport(
                    code="row_too_long", message="line 3 is too long", param="training_file", details=(detail,)
                )
            )
            return USER_ERROR
        if self.spec.tokens_per_batch > self.faults.get("needs_tokens_at_most", 1 << 30):
            return OUT_OF_MEMORY
        if self.spec.rate_search is not None and self.spec.is_searching:
            self.say(PhaseReport(phase="searching_rate"))
            self.say(RateReport(found=found_rate(self.spec.rate_search), seconds=0.25))
        self.say(PhaseReport(phase="training"))
        return None

    def go_on(self) -> int | None:
        if self.step < self.total:
            if self.is_draining:
                self.checkpoint()
                return DRAINED
            return None if self.is_standing() else self.turn()
        adapter = write_adapter(self.assignment.work_dir / "adapters" / "final.zip", self.state)
        details = {"parameters": 100, "peft_type": "LORA", "base_precision": "fp32"}
        metrics = {"train_loss": self.loss}
        self.say(
            FinishedReport(
                step=self.step, adapter=adapter, trained_tokens=self.step * 10, metrics=metrics, details=details
            )
        )
        return FINISHED

    def is_standing(self) -> bool:
        is_there = self.step == self.faults.get("stand_at") and self.assignment.lease_epoch == 1
        return is_there and not Path(os.environ["TMPDIR"], "go").exists()

    def turn(self) -> int | None:
        self.step += 1
        self.state = fold(self.state, self.step)
        self.crash_where_asked()
        if self.step == self.faults.get("not_finite_at"):
            return NOT_FINITE
        self.say(
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
            self.say(ValidationReport(step=self.step, total_steps=self.total, **valid))
        if self.step % int(os.environ["GRAFT_CHECKPOINT_STEPS"]) == 0 and self.step < self.total:
            self.checkpoint()
        return None

    def crash_where_asked(self) -> None:
        reached(f"step:{self.step}", self.assignment.lease_epoch)
        if self.step == self.faults.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step == self.faults.get("hang_at"):
            time.sleep(600)

    def drain(self) -> None:
        self.is_draining = not self.faults.get("deaf")


class Company:
    """All jobs of the process."""

    def __init__(self) -> None:
        self.coming: queue.Queue[Assignment | Leave] = queue.Queue()
        self.trainers: list[FakeTrainer] = []
        self.is_draining = False
        self.code = FINISHED

    def listen(self) -> None:
        for line in sys.stdin:
            self.coming.put(ORDER.validate_json(line))
        os._exit(9)

    def run(self) -> int:
        self.obey(self.coming.get())
        while self.trainers or not self.coming.empty():
            while not self.coming.empty():
                self.obey(self.coming.get())
            time.sleep(max((trainer.spec.learning_rate for trainer in self.trainers), default=0))
            for trainer in list(self.trainers):
                if self.is_draining:
                    trainer.drain()
                self.end(trainer, trainer.go_on())
        return self.code

    def obey(self, order: Assignment | Leave) -> None:
        if isinstance(order, Assignment):
            trainer = FakeTrainer(order)
            self.trainers.append(trainer)
            self.end(trainer, trainer.begin())
            return
        for trainer in self.trainers:
            if trainer.assignment.job_id == order.job_id:
                trainer.drain()

    def end(self, trainer: FakeTrainer, code: int | None) -> None:
        if code == OUT_OF_MEMORY:
            sys.exit(code)
        if code is not None:
            self.code = code
            self.trainers.remove(trainer)
            tell(Ended(job_id=trainer.assignment.job_id, code=code))

    def drain(self, *_: object) -> None:
        self.is_draining = True


def main() -> int:
    company = Company()
    threading.Thread(target=company.listen, daemon=True).start()
    signal.signal(signal.SIGTERM, company.drain)
    return company.run()


if __name__ == "__main__":
    sys.exit(main())
