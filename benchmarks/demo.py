"""The whole journey on this machine: two datasets in, two adapters out, both and the bare base answering in one batch.

Drives the service as a customer does: through REST, with the stock `openai` client. Ends in a table and in
benchmarks/results/demo.json; exits 1 if any part fails or an adapter does not clearly beat the base on held-out rows.
"""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.progress import Progress
from rich.table import Table

from benchmarks.service import console, follow, progress, service
from core.settings import Settings

SAMPLES = Path("core/data/samples")
RESULTS = Path("benchmarks/results/demo.json")
CLEAR_GAIN = 0.3  # of exact match: below this an adapter is not worth its name here


@dataclass(frozen=True)
class HeldOut:
    """One row that no adapter has seen."""

    messages: list[dict[str, str]]
    answer: str


@dataclass(frozen=True)
class Task:
    """A sample dataset."""

    name: str
    says: str

    @property
    def training_file(self) -> Path:
        """The rows to learn from."""
        return SAMPLES / f"{self.name}.train.jsonl"

    def held_out(self) -> list[HeldOut]:
        """The rows to be judged by."""
        lines = (SAMPLES / f"{self.name}.heldout.jsonl").read_text(encoding="utf-8").splitlines()
        turns = [json.loads(line)["messages"] for line in lines]
        return [HeldOut(t[:-1], t[-1]["content"]) for t in turns]


@dataclass(frozen=True)
class Outcome:
    """One task, before and after."""

    task: str
    rows: int
    base_exact_match: float
    adapter_exact_match: float
    training_s: float
    steps: int
    adapter_bytes: int
    model: str


TASKS = (Task("tickets", "route a support ticket to its queue"), Task("notes", "rewrite a note into house style"))


def main() -> int:
    """Run the journey; the exit status tells whether every part held."""
    settings = Settings()
    with service(settings) as address:
        key = (settings.data_dir / "admin.key").read_text().strip()
        client = OpenAI(api_key=key, base_url=f"{address}/v1", timeout=600.0)
        outcomes, batch = journey(client, settings.default_base_model)
        show(outcomes, batch)
        keep(outcomes, batch)
        weak = [o for o in outcomes if o.adapter_exact_match < o.base_exact_match + CLEAR_GAIN]
        for o in weak:
            console.print(f"[red]{o.task}: {o.adapter_exact_match:.0%} does not clearly beat {o.base_exact_match:.0%}")
        if is_to_stay():
            linger(address, settings)
    return 1 if weak else 0


def is_to_stay() -> bool:
    """Whether a person is there to look at the service afterwards."""
    return sys.stdout.isatty() and os.environ.get("DEMO_EXIT") != "1"


def journey(client: OpenAI, base: str) -> tuple[list[Outcome], dict[str, float]]:
    """Upload, train, and serve everything in one batch."""
    with progress() as bar:
        jobs = {task: submit(client, base, task) for task in TASKS}
        bars = {task: bar.add_task(f"Training: {task.name}", total=None, says="queued") for task in TASKS}
        done = {task: follow(client, jobs[task], bar, bars[task]) for task in TASKS}
        return serve(client, base, done, bar)


def submit(client: OpenAI, base: str, task: Task) -> FineTuningJob:
    """Upload the training rows and ask for a LoRA adapter."""
    with task.training_file.open("rb") as rows:
        file = client.files.create(file=rows, purpose="fine-tune")
    return client.fine_tuning.jobs.create(
        model=base, training_file=file.id, suffix=task.name, seed=7, extra_body={"peft": {"type": "lora", "r": 16}}
    )


def serve(
    client: OpenAI, base: str, done: dict[Task, FineTuningJob], bar: Progress
) -> tuple[list[Outcome], dict[str, float]]:
    """Every held-out row on its adapter and on the bare base, all asked at once."""
    asked = [
        (model, task, row)
        for task, job in done.items()
        for row in task.held_out()
        for model in (base, str(job.fine_tuned_model))
    ]
    line = bar.add_task("Serving base and adapters together", total=len(asked), says="")

    def ask(model: str, row: HeldOut) -> tuple[str, int]:
        answer = client.chat.completions.create(model=model, messages=row.messages, temperature=0, max_tokens=40)  # type: ignore[arg-type]
        bar.advance(line)
        return answer.choices[0].message.content or "", answer.usage.completion_tokens if answer.usage else 0

    began = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda a: ask(a[0], a[2]), asked))
    seconds = time.monotonic() - began
    hits = {(m, t): [] for m, t, _ in asked}  # type: dict[tuple[str, Task], list[bool]]
    for (model, task, row), (text, _) in zip(asked, answers, strict=True):
        hits[model, task].append(plain(text) == plain(row.answer))
    tokens = sum(count for _, count in answers)
    outcomes = [outcome(client, task, job, hits, base) for task, job in done.items()]
    return outcomes, {
        "requests": len(asked),
        "models": 1 + len(done),
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
    }


def plain(text: str) -> str:
    """An answer without what a fair judge overlooks: letter case, white space around it, a full stop at its end."""
    return text.strip().rstrip(".").casefold()


def outcome(
    client: OpenAI, task: Task, job: FineTuningJob, hits: dict[tuple[str, Task], list[bool]], base: str
) -> Outcome:
    """What one task gained, and what it cost."""
    model = str(job.fine_tuned_model)
    adapter = client.get(f"/adapters/{model}", cast_to=dict[str, object])
    before, after = hits[base, task], hits[model, task]
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data  # newest first
    steps = max(e.data["step"] for e in events if e.type == "metrics" and isinstance(e.data, dict))
    started = getattr(job, "started_at", None) or job.created_at
    return Outcome(
        task=f"{task.name}: {task.says}",
        rows=len(after),
        base_exact_match=sum(before) / len(before),
        adapter_exact_match=sum(after) / len(after),
        training_s=float((job.finished_at or 0) - started),
        steps=int(steps),
        adapter_bytes=int(str(adapter["bytes"])),
        model=model,
    )


def show(outcomes: list[Outcome], batch: dict[str, float]) -> None:
    """The table that ends the demo."""
    table = Table(title="Held-out rows answered exactly (letter case and a last full stop aside)", title_style="bold")
    for head in ("task", "rows", "base", "adapter", "training", "steps", "adapter size"):
        table.add_column(head, justify="left" if head == "task" else "right")
    for o in outcomes:
        table.add_row(
            o.task,
            str(o.rows),
            f"{o.base_exact_match:.0%}",
            f"[green]{o.adapter_exact_match:.0%}",
            f"{o.training_s:.0f} s",
            str(o.steps),
            f"{o.adapter_bytes / 1e6:.1f} MB",
        )
    console.print(table)
    console.print(
        f"{batch['requests']:.0f} requests to {batch['models']:.0f} models (the base and every adapter) shared one "
        f"engine's batches: {batch['seconds']:.1f} s, {batch['tokens_per_s']:.0f} tokens/s."
    )


def keep(outcomes: list[Outcome], batch: dict[str, float]) -> None:
    """The same figures for machines."""
    RESULTS.parent.mkdir(exist_ok=True)
    figures = {"cores": os.cpu_count(), "outcomes": [asdict(o) for o in outcomes], "batch": batch}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


def linger(address: str, settings: Settings) -> None:
    """Leave the service up until the person at the terminal has seen enough."""
    console.print(f"The service stays up at {address} (key: {settings.data_dir / 'admin.key'}). Ctrl-C stops it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("Stopping …")


if __name__ == "__main__":
    sys.exit(main())
