"""CLINC150 (Larson et al. 2019) by REST: 20 intents, 50 training rows each, held-out accuracy before and after.

The data lie beside the project (../shared/data/clinc150/data_full.json) and are not part of it; without them this
script says so and ends with status 2. Prints a table and writes benchmarks/results/clinc150.json.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from openai import OpenAI
from rich.table import Table

from benchmarks.service import console, follow, progress, service
from core.settings import Settings

RESULTS = Path("benchmarks/results/clinc150.json")
Row = tuple[str, str]  # text, intent


def main() -> int:
    """Train, ask the held-out rows before and after, print and keep."""
    options = arguments(__doc__, intents=20, rows=50, held_out=30).parse_args()
    if not options.data.exists():
        console.print(f"{options.data} is not here: put CLINC150's data_full.json there, or name it with --data")
        return 2
    train, held_out, intents = rows(options.data, options.intents, options.rows, options.held_out)
    settings = Settings()
    with service(settings) as address, progress() as bar:
        key = (settings.data_dir / "admin.key").read_text().strip()
        client = OpenAI(api_key=key, base_url=f"{address}/v1", timeout=600.0)
        base = settings.default_base_model
        before, untold = accuracy(client, base, held_out, intents), accuracy(client, base, held_out)
        file = client.files.create(file=("clinc150.jsonl", BytesIO(as_chat(train))), purpose="fine-tune")
        began = time.monotonic()
        job = client.fine_tuning.jobs.create(
            model=base,
            training_file=file.id,
            suffix="clinc150",
            seed=7,
            hyperparameters={"n_epochs": options.epochs},
            extra_body={"peft": {"type": "lora"}},
        )
        done = follow(client, job, bar, bar.add_task("Training on CLINC150", total=None, says="queued"))
        seconds = time.monotonic() - began
        after = accuracy(client, str(done.fine_tuned_model), held_out)
    figures = {
        "cores": os.cpu_count(),
        "intents": len(intents),
        "training_rows": len(train),
        "held_out_rows": len(held_out),
        "accuracy_before": before,
        "accuracy_before_without_the_list_of_intents": untold,
        "accuracy_after": after,
        "seconds": seconds,
        "trained_tokens": done.trained_tokens,
    }
    show(figures)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if after > before else 1


def arguments(about: str | None, *, intents: int, rows: int, held_out: int) -> argparse.ArgumentParser:
    """What a command line may say of a part of CLINC150, and of how it is learned."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/clinc150/data_full.json"))
    parser.add_argument("--intents", type=int, default=intents)
    parser.add_argument("--rows", type=int, default=rows, help="training rows of each intent")
    parser.add_argument("--held-out", type=int, default=held_out, help="test rows of each intent")
    parser.add_argument("--epochs", type=epochs, default="auto", help="passes over the training rows")
    return parser


def epochs(text: str) -> int | str:
    """A number, or auto."""
    return text if text == "auto" else int(text)


def rows(path: Path, n_intents: int, n_rows: int, n_held_out: int) -> tuple[list[Row], list[Row], list[str]]:
    """Training rows, test rows of the same intents, and these intents: chosen by a fixed seed."""
    full = json.loads(path.read_text(encoding="utf-8"))
    draw = random.Random(150)
    intents = sorted(draw.sample(sorted({intent for _, intent in full["train"]}), n_intents))

    def first(split: str, count: int) -> list[Row]:
        of_each = ([(text, intent) for text, intent in full[split] if intent == name] for name in intents)
        return [row for rows_of_one in of_each for row in rows_of_one[:count]]

    train, held_out = first("train", n_rows), first("test", n_held_out)
    return train, held_out, intents


def messages(text: str, intents: Iterable[str] = ()) -> list[dict[str, str]]:
    """What is asked. The base is told the intents too, since it cannot know them; an adapter has learned them."""
    names = ", ".join(name.replace("_", " ") for name in intents)
    asked = "Name the intent of the text." + (f" Answer with one of: {names}." if names else "")
    return [{"role": "system", "content": asked}, {"role": "user", "content": text}]


def as_chat(train: list[Row]) -> bytes:
    """The training file."""
    lines = [
        json.dumps({"messages": [*messages(text), {"role": "assistant", "content": name.replace("_", " ")}]})
        for text, name in train
    ]
    return ("\n".join(lines) + "\n").encode()


def accuracy(client: OpenAI, model: str, held_out: list[Row], intents: Iterable[str] = ()) -> float:
    """The share of rows answered with exactly the intent's name, letter case aside."""

    def is_right(row: Row) -> bool:
        answer = client.chat.completions.create(
            model=model,
            messages=messages(row[0], intents),  # type: ignore[arg-type]
            temperature=0,
            max_tokens=12,
        )
        said = (answer.choices[0].message.content or "").strip().lower()
        return said == row[1].replace("_", " ")

    with ThreadPoolExecutor(24) as pool:
        return sum(pool.map(is_right, held_out)) / len(held_out)


def show(figures: dict[str, float | int | None]) -> None:
    """The figures as a table."""
    table = Table("figure", "value", title="CLINC150 by REST, LoRA r=16 with defaults")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
