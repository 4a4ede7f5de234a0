"""Six methods on one real task by REST: what each costs and what it gains, beside the untuned base.

The task is a part of CLINC150 (see benchmarks/clinc150.py), the base SmolLM2-135M, every job submitted with its own
defaults. Prints a table and writes benchmarks/results/methods.json; ends with 1 unless every method clearly beats the
base, which is told the intents while the adapters are not.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.table import Table

from benchmarks.clinc150 import accuracy, arguments, as_chat, rows
from benchmarks.service import console, follow, progress, service
from core.settings import Settings
from core.specs.method import SPECS

RESULTS = Path("benchmarks/results/methods.json")
METHODS = tuple(str(spec.model_fields["type"].default) for spec in SPECS)
CLEAR_GAIN = 0.2  # of held-out accuracy


@dataclass(frozen=True)
class Outcome:
    """One method's row of the table."""

    method: str
    parameters: int
    adapter_bytes: int
    steps: int
    step_s: float  # a mean step's tokens at the median rate
    peak_bytes: int  # of the trainer process
    learning_rate: float
    seconds: float  # of the whole job, opening the base included
    accuracy: float


def main() -> int:
    """Train all, ask all, print and keep."""
    options = options_of_this()
    if not options.data.exists():
        console.print(f"{options.data} is not here: put CLINC150's data_full.json there, or name it with --data")
        return 2
    train, held_out, intents = rows(options.data, options.intents, options.rows, options.held_out)
    settings = Settings()
    with service(settings) as address:
        key = (settings.data_dir / "admin.key").read_text().strip()
        client = OpenAI(api_key=key, base_url=f"{address}/v1", timeout=900.0)
        base = settings.default_base_model
        told, untold = accuracy(client, base, held_out, intents), accuracy(client, base, held_out)
        console.print(f"The untuned base: {told:.1%} when told the {len(intents)} intents, {untold:.1%} when not")
        known = adopted(client) if options.adopt else {}
        file = client.files.create(file=("clinc150.jsonl", BytesIO(as_chat(train))), purpose="fine-tune")
        kept = {m: job for m, job in known.items() if m not in options.again}
        jobs = {m: kept.get(m) or submit(client, base, file.id, m, options.epochs) for m in options.only}
        with progress() as bar:
            done = {m: follow(client, job, bar, bar.add_task(m, total=None, says="queued")) for m, job in jobs.items()}
        outcomes = [
            outcome(client, m, job, accuracy(client, str(job.fine_tuned_model), held_out)) for m, job in done.items()
        ]
    figures = {
        "cores": os.cpu_count(),
        "intents": len(intents),
        "training_rows": len(train),
        "held_out_rows": len(held_out),
        "base_told_the_intents": told,
        "base_told_nothing": untold,
        "methods": [asdict(o) for o in outcomes],
    }
    show(outcomes, told, untold)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(o.accuracy >= max(told, untold) + CLEAR_GAIN for o in outcomes) else 1


def options_of_this() -> argparse.Namespace:
    """What the command line says."""
    parser = arguments(__doc__, intents=10, rows=20, held_out=20)
    parser.add_argument("--adopt", action="store_true", help="go on with the jobs of a call that was stopped")
    parser.add_argument("--again", nargs="+", choices=METHODS, default=(), help="with --adopt: but train these anew")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    return parser.parse_args()


def adopted(client: OpenAI) -> dict[str, FineTuningJob]:
    """The newest job of each method that an earlier call submitted, but for those cancelled or failed."""
    known = {suffix_of(method): method for method in METHODS}
    found: dict[str, FineTuningJob] = {}
    for job in client.fine_tuning.jobs.list():  # newest first
        method = known.get(str(getattr(job, "suffix", None)))
        if method is not None and job.status not in ("cancelled", "failed"):
            found.setdefault(method, job)
    return found


def suffix_of(method: str) -> str:
    """What the models of a method are called by."""
    return method.replace("_", "-")


def submit(client: OpenAI, base: str, file_id: str, method: str, epochs: int | str) -> FineTuningJob:
    """One job with the method's defaults."""
    return client.fine_tuning.jobs.create(
        model=base,
        training_file=file_id,
        suffix=suffix_of(method),
        seed=7,
        hyperparameters={"n_epochs": epochs},  # type: ignore[arg-type]  # "auto", or a number
        extra_body={"peft": {"type": method}},
    )


def outcome(client: OpenAI, method: str, job: FineTuningJob, hits: float) -> Outcome:
    """What one job cost, from its own events."""
    adapter = client.get(f"/adapters/{job.fine_tuned_model}", cast_to=dict[str, Any])
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    steps = [e.data for e in events if e.type == "metrics" and isinstance(e.data, dict) and "train_loss" in e.data]
    started = getattr(job, "started_at", None) or job.created_at
    return Outcome(
        method=method,
        parameters=int(adapter["details"]["parameters"]),
        adapter_bytes=int(adapter["bytes"]),
        steps=max(int(s["step"]) for s in steps),
        step_s=(job.trained_tokens or 0) / len(steps) / statistics.median(s["tokens_per_s"] for s in steps),
        peak_bytes=max(int(s["gpu_mem_bytes"]) for s in steps),
        learning_rate=max(float(s["learning_rate"]) for s in steps),
        seconds=float((job.finished_at or 0) - started),
        accuracy=hits,
    )


def show(outcomes: list[Outcome], told: float, untold: float) -> None:
    """The table."""
    table = Table(title=f"CLINC150 by REST; the untuned base has {told:.1%} told the intents, {untold:.1%} not")
    for head in ("method", "parameters", "adapter", "steps", "step", "peak memory", "job", "held-out accuracy"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for o in outcomes:
        table.add_row(
            o.method,
            f"{o.parameters:,}",
            f"{o.adapter_bytes / 1e6:.2f} MB",
            str(o.steps),
            f"{o.step_s:.2f} s",
            f"{o.peak_bytes / 1e6:,.0f} MB",
            f"{o.seconds:.0f} s",
            f"{o.accuracy:.1%}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
