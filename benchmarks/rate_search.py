"""What `learning_rate: "search"` costs and finds, against every rate of its grid trained in full, one after another.

SmolLM2-135M, a rank-16 LoRA, rows of CLINC150 as chats. The search is the service's own (core/rate_search.py), judged
by rows held out of the training rows; then the job's run with the rate that it found. The grid is the same job once for
each rate. All are judged by the loss of CLINC150's test rows, which none has seen. Cost is processor time, which a busy
machine stretches little, and tokens learned. Writes benchmarks/results/rate_search.json. Run it with OMP_NUM_THREADS=1.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clinc150 import Row, arguments, as_chat, rows
from core.base.catalogue import entry
from core.base.load import OpenBase, open_base
from core.data.batches import Corpus
from core.data.formats import read
from core.data.tokens import encode_all
from core.methods import METHODS
from core.model import RoutedModel
from core.preferences import Pairs
from core.rate_search import Search
from core.reading import with_reading
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.method import LoraSpec
from core.specs.training import HyperparametersRequest, TrainingRequest, TrainSpec, resolve
from core.trainer import Run, Step, evaluate, train

RESULTS = Path("benchmarks/results/rate_search.json")
BASE = "smollm2-135m-instruct"
WITHIN, AT_MOST = 0.05, 0.35  # of the grid's best loss; of the sequential cost
LONGEST = 128


@dataclass(frozen=True)
class Bench:
    """The base, and the rows of the job and of the judgement."""

    base: OpenBase
    model: RoutedModel
    corpus: Corpus
    test: Corpus

    def run_of(self, spec: TrainSpec, corpus: Corpus | Pairs) -> Run:
        """At step 0, from the same numbers."""
        generator = torch.Generator().manual_seed(spec.seed)
        facts = with_reading(self.base.facts, self.model)
        return Run(spec, METHODS[spec.method.type](spec.method, facts, generator=generator), corpus)

    def trained(self, spec: TrainSpec) -> float:
        """The loss of the test rows, once the job was trained in full."""
        run = self.run_of(spec, self.corpus)
        for event in train(self.model, [run]):
            if not isinstance(event, Step):
                return float("inf")
        *_, score = evaluate(self.model, run.method, self.test, spec.tokens_per_batch)
        return score.loss


def corpus_of(lines: list[Row], base: OpenBase) -> Corpus:
    """As the trainer reads them."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        Path(file.name).write_bytes(as_chat(lines))
        examples = list(read(Path(file.name)))
    return Corpus.of(encode_all(examples, base.tokenizer, train_on="assistant", max_tokens=LONGEST))


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the processor's seconds."""
    began = time.process_time()
    return act(), time.process_time() - began


def searched(bench: Bench, spec: TrainSpec) -> Search:
    """The search, gone through."""
    search = Search(bench.model, spec, bench.run_of, bench.corpus, None)
    for _ in search.run():
        pass
    return search


def compared(bench: Bench, spec: TrainSpec) -> dict[str, Any]:
    """Search and one run, then the whole grid."""
    assert spec.rate_search
    search, search_s = timed(lambda: searched(bench, spec))
    found = search.found
    print(f"found {found.rate:g} in {search_s:.1f} s", flush=True)
    grid = []
    for rate in spec.rate_search.rates:
        plain = spec.model_copy(update={"learning_rate": rate, "rate_search": None})
        loss, seconds = timed(lambda plain=plain: bench.trained(plain))  # type: ignore[misc]
        grid.append({"rate": rate, "loss": loss, "cpu_s": seconds})
        print(f"{rate:g}: loss {loss:.4f} in {seconds:.1f} s", flush=True)
    best = min(row["loss"] for row in grid)
    of_found = next(row for row in grid if row["rate"] == found.rate)
    sequential_s = sum(row["cpu_s"] for row in grid)
    per_run = len(bench.corpus.ids) * spec.n_epochs
    return {
        "rows": len(bench.corpus),
        "test_rows": len(bench.test),
        "steps_of_a_run": -(-len(bench.corpus) // spec.batch_size) * spec.n_epochs,
        "rungs": spec.rate_search.rungs,
        "found": found.model_dump(mode="json"),
        "search_cpu_s": search_s,
        "grid": grid,
        "sequential_cpu_s": sequential_s,
        "loss_found": of_found["loss"],
        "loss_best": best,
        "loss_over_best": of_found["loss"] / best - 1,
        "cost_of_search": search_s / sequential_s,
        # One full run follows the search: the same run, with the same bits, as that rate's in the grid.
        "cost_with_the_run": (search_s + of_found["cpu_s"]) / sequential_s,
        "tokens_with_the_run": found.share / len(grid) + 1 / len(grid),
        "tokens_of_a_run": per_run,
    }


def show(told: dict[str, Any]) -> None:
    """The table."""
    tried = {candidate["rate"]: candidate["losses"] for candidate in told["found"]["candidates"]}
    table = Table("rate", "losses at the rungs", "test loss in full", "processor s")
    for row in told["grid"]:
        losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in tried[row["rate"]])
        is_found = " (found)" if row["rate"] == told["found"]["rate"] else ""
        table.add_row(f"{row['rate']:g}{is_found}", losses, f"{row['loss']:.4f}", f"{row['cpu_s']:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"loss {told['loss_over_best']:+.1%} of the grid's best (goal: within {WITHIN:.0%})")
    console.print(
        f"search and run {told['cost_with_the_run']:.1%} of the sequential cost (goal: at most {AT_MOST:.0%})"
    )


def main() -> int:
    """Measure, print, keep; status 1 where a goal is missed, 2 without data."""
    parser = arguments(__doc__, intents=8, rows=20, held_out=8)
    parser.add_argument("--cache", type=Path, default=Path(".cache/tests"), help="converted base models")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if not options.data.exists():
        print(f"{options.data} is not here: put CLINC150's data_full.json there, or name it with --data")
        return 2
    base = open_base(entry(EMBEDDED_BASE_MODELS, BASE), cache_dir=options.cache, device="cpu", precision="fp32")
    learned, test, _ = rows(options.data, options.intents, options.rows, options.held_out)
    bench = Bench(base, RoutedModel(base.model), corpus_of(learned, base), corpus_of(test, base))
    spec = resolve(
        base_model=BASE,
        context=LONGEST,
        method=LoraSpec(r=16),
        hyperparameters=HyperparametersRequest(n_epochs=options.epochs, batch_size=options.batch),
        training=TrainingRequest(learning_rate="search"),
        seed=options.seed,
        n_examples=len(bench.corpus),
    )
    told = compared(bench, spec)
    show(told)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if told["loss_over_best"] <= WITHIN and told["cost_with_the_run"] <= AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main())
