"""Fifty times kill -9 at random moments, over all six methods, against the bytes of a run that nothing disturbed.

Trainer children (worker.trainer_process, each forked with its imports done) on a tiny random Llama, a checkpoint after
every step, several forwards to a step. Each method trains once undisturbed; then runs of it are killed again and again,
at moments drawn from --seed, until each has ended. A kill falls wherever it falls: while the base is opened, within a
step's forwards, while a checkpoint or an adapter is being written. After each one every folder that bears a
checkpoint's name is held against its manifest, by this script's own reading: one that is not what it says is torn.
Writes benchmarks/results/kills.json. Run it with OMP_NUM_THREADS=1.
"""

import argparse
import hashlib
import json
import os
import random
import select
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.specs.assignment import (
    FINISHED,
    TOLD,
    Assignment,
    BaseModelEntry,
    FinishedReport,
    PhaseReport,
    Report,
    Said,
    StepReport,
    Told,
    WarningReport,
)
from core.specs.training import TrainSpec
from worker import company, trainer_process

assert company  # imported here, once, and not by every child

RESULTS = Path("benchmarks/results/kills.json")
KILLS, SEED = 50, 20
ROWS, VALIDATED = 30, 4
IN_LOADING = 8  # one kill in so many falls before the first step
LIMIT_S = 300.0  # of one child
SETTINGS = {"CHECKPOINT_STEPS": "1", "THREADS": "1", "DEVICE": "cpu", "PRECISION": "fp32"}
RUN: dict[str, Any] = {
    "n_epochs": 4,
    "batch_size": 6,
    "learning_rate": 0.01,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_seq_length": 256,
    "tokens_per_batch": 96,  # two or three rows: a step is several forwards
    "train_on": "assistant",
    "eval_steps": 5,
    "n_checkpoints": 2,
    "seed": 7,
}
METHODS: Mapping[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 4, "lora_dropout": 0.1},
    "qlora": {"type": "qlora", "r": 4, "lora_dropout": 0.1},
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 3, "lora_dropout": 0.1},
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 32},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 5, "prompt_tuning_init": "random"},
    "p_tuning": {"type": "p_tuning", "template": "{v:3}{input}{v:2}{target}"},
}
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_base(folder: Path) -> BaseModelEntry:
    """A random Llama of two layers with a byte-level tokeniser, in a folder."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.2, **sizes)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    LlamaForCausalLM(config).save_pretrained(folder)
    return BaseModelEntry(id="tiny", source=str(folder))


def rows(path: Path, numbers: range) -> Path:
    """Chat rows of which no two are alike."""
    said = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n * n} " * (n % 4 + 1)}]
        for n in numbers
    ]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
    return path


def assignment_of(folder: Path, base: BaseModelEntry, method: dict[str, Any], lease_epoch: int) -> Assignment:
    """One attempt at the job that lies in folder."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = TrainSpec.model_validate({"base_model": "tiny", "method": method, **RUN})
    return Assignment(
        job_id="ftjob-kills",
        lease_epoch=lease_epoch,
        spec=spec,
        base=base,
        training_file=rows(folder / "training.jsonl", range(ROWS)),
        validation_file=rows(folder / "validation.jsonl", range(100, 100 + VALIDATED)),
        work_dir=folder / "work",
        cache_dir=folder.parent / "cache",
    )


@dataclass
class Life:
    """One child, from its start to its end. moment: where the kill fell, None where it ended by itself."""

    code: int = 0
    moment: str | None = None
    reports: list[Report] = field(default_factory=list)
    seconds: float = 0.0  # from its first step, or its start
    loading_s: float = 0.0

    @property
    def adapter(self) -> str | None:
        """The sha256 of what it made, if it came to its end."""
        last = self.reports[-1] if self.reports else None
        return hashlib.sha256(last.adapter.read_bytes()).hexdigest() if isinstance(last, FinishedReport) else None


class Child:
    """A trainer process with its two pipes."""

    def __init__(self, assignment: Assignment) -> None:
        self._log_file = assignment.work_dir.parent / "trainer.log"
        orders, self._orders = os.pipe()
        self._told, told = os.pipe()
        self._kept = b""
        self.has_ended = False
        self.pid = os.fork()
        if not self.pid:
            os.close(self._orders)
            self._become_a_trainer(orders, told)
        os.close(orders)
        os.close(told)
        os.write(self._orders, assignment.model_dump_json().encode() + b"\n")

    def _become_a_trainer(self, orders: int, told: int) -> NoReturn:
        log = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for ours, number in ((orders, 0), (told, 1), (log, 2)):
            os.dup2(ours, number)
        os.environ.update({f"GRAFT_{name}": value for name, value in SETTINGS.items()})
        code: Any = 1
        try:
            trainer_process.main()
        except SystemExit as done:
            code = done.code
        except BaseException:  # noqa: BLE001 - it must not go on as a second benchmark
            traceback.print_exc()
        os._exit(code)

    def next(self, within_s: float) -> list[Told]:
        """What it told since; waits so long for it."""
        if not select.select([self._told], [], [], within_s)[0]:
            return []
        chunk = os.read(self._told, 1 << 16)
        self.has_ended = not chunk
        *whole, self._kept = (self._kept + chunk).split(b"\n")
        return [TOLD.validate_json(line) for line in whole]

    def kill(self) -> None:
        """Now, as the kernel does it."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Its exit code; negative is the signal that killed it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._told)
        return os.waitstatus_to_exitcode(status)

    def tail(self) -> str:
        """The last of its log."""
        return self._log_file.read_text()[-2000:]


def live(assignment: Assignment, kill: tuple[str, float] | None = None) -> Life:
    """Runs one child. kill: so many seconds after its start ("loading"), or after it says that it trains."""
    left = scratch(assignment.work_dir)
    began, child, life = time.monotonic(), Child(assignment), Life()
    where, after_s = kill or ("never", LIMIT_S)
    kill_at = began + (after_s if where == "loading" else LIMIT_S)
    while not child.has_ended and time.monotonic() < kill_at:
        for told in child.next(max(0.0, kill_at - time.monotonic())):
            if not isinstance(told, Said):
                continue
            life.reports.append(told.report)
            if _trains(told.report) and not life.loading_s:
                life.loading_s = time.monotonic() - began
                kill_at = time.monotonic() + after_s if where == "training" else kill_at
    child.kill()
    life.code = child.reap()
    life.seconds = time.monotonic() - began - life.loading_s
    if life.code not in ((FINISHED,) if kill is None else (FINISHED, -signal.SIGKILL)):
        raise RuntimeError(f"a child ended with {life.code}: {child.tail()}")
    life.moment = None if life.code == FINISHED else moment(scratch(assignment.work_dir) - left, life)
    return life


def _trains(report: Report) -> bool:
    return isinstance(report, PhaseReport) and report.phase == "training"


def scratch(work_dir: Path) -> set[str]:
    """Names of what is being written there, or was when somebody died over it."""
    return {path.name for path in (*work_dir.glob("checkpoints/tmp-*"), *work_dir.glob("adapters/.export-*"))}


def moment(left: set[str], life: Life) -> str:
    """What a killed child was at, as what it left behind tells."""
    if any(name.startswith("tmp-") for name in left):
        return "writing a checkpoint"
    if left:
        return "writing an adapter"
    if not life.loading_s:
        return "opening base and data"
    if isinstance(life.reports[-1], StepReport):
        return "after a step, before its checkpoint"
    return "within a step"


def torn(folder: Path) -> list[str]:
    """Folders that bear a checkpoint's name and are not what their manifest says."""
    found = []
    for path in sorted(folder.glob("ck-*-e*")):
        if path.suffix == ".zip":
            continue
        try:
            files = json.loads((path / "manifest.json").read_bytes())["files"]
            sound = all(
                hashlib.sha256((path / name).read_bytes()).hexdigest() == said["sha256"] for name, said in files.items()
            )
        except (OSError, ValueError, KeyError):
            sound = False
        if not sound:
            found.append(path.name)
    return found


def drawn(moments: random.Random, usual: Life) -> tuple[str, float]:
    """The next kill: anywhere in the life of a child that is as quick as one that nothing disturbed."""
    if moments.randrange(IN_LOADING) == 0:
        return "loading", moments.uniform(0, usual.loading_s)
    return "training", moments.uniform(0, 0.6 * usual.seconds)


@dataclass
class Tally:
    """Of one method. differing: runs whose adapter had other bytes."""

    kills: int = 0
    runs: int = 0
    differing: int = 0
    torn: int = 0
    corrupt: int = 0  # checkpoints that a trainer itself set aside
    moments: Counter[str] = field(default_factory=Counter)


def killed(folder: Path, base: BaseModelEntry, method: dict[str, Any], kills: int, seed: int) -> Tally:
    """Runs of one method, killed so many times in all, each to its end."""
    usual = live(assignment_of(folder / "whole", base, method, 1))
    moments, tally = random.Random(seed), Tally()
    while tally.kills < kills:
        attempts = partial(assignment_of, folder / f"run-{tally.runs}", base, method)
        for life in lives(attempts, moments, usual, kills - tally.kills):
            work_dir = folder / f"run-{tally.runs}" / "work"
            tally.torn += len(torn(work_dir / "checkpoints"))
            said = [report for report in life.reports if isinstance(report, WarningReport)]
            tally.corrupt += sum(report.code == "checkpoint_corrupt" for report in said)
            if life.moment:
                tally.kills += 1
                tally.moments[life.moment] += 1
        tally.runs += 1
        tally.differing += life.adapter != usual.adapter
    return tally


def lives(attempts: Callable[[int], Assignment], moments: random.Random, usual: Life, most: int) -> Iterator[Life]:
    """The children of one run, the last of which comes to its end; at most so many are killed."""
    for lease_epoch in range(1, most + 2):
        kill = drawn(moments, usual) if lease_epoch <= most else None
        life = live(attempts(lease_epoch), kill)
        yield life
        if life.moment is None:
            return


def all_killed(kills: int, seed: int, names: list[str]) -> dict[str, Any]:
    """The whole result: kills shared out among the methods, the first of them taking what is left over."""
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        base = tiny_base(Path(scratch) / "base")
        for number, name in enumerate(names):
            share = kills // len(names) + (number < kills % len(names))
            tallies[name] = killed(Path(scratch) / name, base, METHODS[name], share, seed + number)
            print(name, tallies[name], flush=True)
    totals = {key: sum(getattr(t, key) for t in tallies.values()) for key in ("kills", "runs", "differing", "torn")}
    moments = sum((t.moments for t in tallies.values()), Counter[str]())
    methods = {name: vars(tally) for name, tally in tallies.items()}
    return {"seed": seed, **totals, "moments": dict(moments), "methods": methods}


def show(found: dict[str, Any]) -> None:
    """The table."""
    table = Table("method", "kills", "runs", "other bytes", "torn", "set aside", "where they fell")
    for name, tally in found["methods"].items():
        fell = ", ".join(f"{count} {where}" for where, count in sorted(tally["moments"].items()))
        figures = (str(tally[key]) for key in ("kills", "runs", "differing", "torn", "corrupt"))
        table.add_row(name, *figures, fell)
    Console(width=140).print(table)


def main() -> None:
    """Kill, print, keep; exit status 1 where a byte differs or a checkpoint is torn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--into", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    found = all_killed(options.kills, options.seed, options.methods)
    show(found)
    options.into.write_text(json.dumps(found, indent=1) + "\n")
    if found["differing"] or found["torn"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
