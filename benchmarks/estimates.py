"""What core/estimate.py foretells against what is measured: peak memory and time of thirty configurations.

Each is two steps in a fresh process, on SmolLM2-135M or a random Llama of 19 million parameters: methods, ranks,
batches, lengths, precisions and optimisers. Prints a table, writes benchmarks/results/estimates.json; --fit prints the
constants that would have foretold the measured peaks best (least squares of relative errors, none below zero).
Memory is to be had on a busy machine; times there are not to be trusted. Run it with OMP_NUM_THREADS=1.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from core.base.catalogue import entry
from core.base.load import OpenBase, open_base
from core.base.shape import shape_of
from core.data.batches import Corpus, largest, order
from core.data.tokens import TokenRow
from core.estimate import KEPT, after_probe, memory_of, needs_bitsandbytes, parts
from core.measured_constants import CONSTANTS, Constants, Pace
from core.methods import METHODS
from core.model import RoutedModel
from core.pace import WORK, seconds_of, work_of
from core.reading import with_reading
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.estimate import Amount, BaseShape, Largest, ScheduleSpec
from core.specs.method import MethodSpec
from core.specs.training import Optimizer, TrainSpec
from core.speed import with_speed
from core.trainer import Run, Step, train
from worker.allocator import ASKED_OF_TORCH, settle_for_training
from worker.meters import memory_bytes

RESULTS = Path("benchmarks/results/estimates.json")
CACHE = Path(".cache/tests")
SMOL, SMALL = "smollm2-135m-instruct", "random-llama-19m"
SPECS: TypeAdapter[MethodSpec] = TypeAdapter(MethodSpec)
LEARNED = 0.55
STEPS = 3
STRIDE = 7  # of the order: prime to the number of cases, so that a run cut short has seen some of each kind
SEED = 7
# A model's layers have inputs in proportion to their outputs, so that thirty runs of two models cannot tell one from
# the other; ranks are too few bytes to be told from the rest.
UNFITTED = ("hidden", "ranks")
TARGETS = {"memory": 0.05, "under": 0.02, "probe": 0.01, "seconds": 0.20}
LORA: dict[str, Any] = {"type": "lora", "r": 16}
PROMPT: dict[str, Any] = {"type": "prompt_tuning", "prompt_tuning_init": "random"}


@dataclass(frozen=True)
class Case:
    """One configuration: rows of so many tokens, give or take a third, so many a step."""

    base: str
    method: dict[str, Any]
    batch: int
    length: int
    precision: str = "fp32"
    optimizer: Optimizer = "adamw"
    tokens_per_batch: int = 2048

    @property
    def name(self) -> str:
        """For the table."""
        size = self.method.get("r") or self.method.get("init_r") or self.method.get("num_virtual_tokens") or ""
        kind = " ".join(str(p) for p in (self.method["type"], self.method.get("parametrization"), size) if p)
        kind += " qv" if "target_modules" in self.method else ""
        rows = f"{self.batch}x{self.length}/{self.tokens_per_batch}"
        return f"{self.base[:6]} {self.precision} {kind} {rows} {self.optimizer}"


def cases() -> list[Case]:
    """Thirty."""
    small = Case(SMALL, LORA, 8, 128)
    smol = Case(SMOL, LORA, 4, 64)
    methods = [
        {"type": "adalora"},
        {"type": "prefix_tuning"},
        {"type": "prefix_tuning", "parametrization": "kv"},
        PROMPT,
        {"type": "p_tuning"},
        {"type": "qlora", "r": 16},
    ]
    chosen = [
        *(replace(small, method={**LORA, "r": r}) for r in (4, 16, 64, 128)),
        *(replace(small, batch=b, length=n) for b, n in ((1, 128), (4, 64), (4, 512), (16, 128), (2, 1024))),
        *(replace(small, method=method) for method in methods),
        *(replace(small, optimizer=name, method={**LORA, "r": 64}) for name in ("adafactor", "adamw_8bit")),
        replace(small, precision="bf16"),
        replace(small, batch=32, tokens_per_batch=512),
        replace(small, method={**LORA, "target_modules": ["q_proj", "v_proj"]}),
        *(replace(smol, method={**LORA, "r": r}) for r in (8, 16, 128)),
        *(replace(smol, batch=b, length=n) for b, n in ((2, 32), (4, 128), (2, 512))),
        replace(smol, precision="bf16"),
        replace(smol, method=PROMPT),
        replace(smol, method={"type": "prefix_tuning", "parametrization": "kv"}),
        replace(smol, method={"type": "qlora", "r": 16}, length=128),
    ]
    return [chosen[number * STRIDE % len(chosen)] for number in range(len(chosen))]


def sources() -> dict[str, str]:
    """The catalogue, the random Llama in it: made once."""
    folder = (CACHE / SMALL).resolve()
    if not folder.exists():
        tokenizer = open_base(entry(EMBEDDED_BASE_MODELS, SMOL), cache_dir=CACHE, device="cpu").tokenizer
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
        }
        config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **sizes)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
        tokenizer.save_pretrained(folder)
    return {**EMBEDDED_BASE_MODELS, SMALL: str(folder)}


def spec_of(case: Case) -> TrainSpec:
    """Of one epoch."""
    return TrainSpec(
        base_model=case.base,
        method=SPECS.validate_python(case.method),
        n_epochs=1,
        batch_size=case.batch,
        learning_rate=1e-4,
        optimizer=case.optimizer,
        lr_scheduler="constant",
        warmup_ratio=0,
        weight_decay=0,
        max_grad_norm=1,
        max_seq_length=4096,
        tokens_per_batch=case.tokens_per_batch,
        train_on="assistant",
        eval_steps=None,
        n_checkpoints=1,
        seed=SEED,
    )


def corpus_of(case: Case, spec: TrainSpec, vocabulary: int) -> Corpus:
    """Rows of random words, the method's own virtual tokens before them."""
    random = np.random.default_rng(SEED)
    template = spec.method.row_template
    before = [-1 - n for n in range(template.num_virtual_tokens if template else 0)]
    rows = []
    for line in range(STEPS * case.batch):
        length = max(8, round(case.length * random.uniform(2 / 3, 4 / 3)))
        ids = np.array([*before, *random.integers(100, vocabulary, length)], np.int32)
        rows.append(TokenRow(line + 1, ids, np.arange(len(ids)) >= len(ids) - round(LEARNED * length)))
    return Corpus.of(rows)


def amount_of(corpus: Corpus, spec: TrainSpec, steps: int = STEPS) -> Amount:
    """What an engine would say of it; of its first steps alone, what these met."""
    lengths = np.diff(corpus.starts)
    learned = np.add.reduceat(corpus.learned.astype(np.int64), corpus.starts[:-1])
    schedule = ScheduleSpec(
        n_epochs=1, batch_size=spec.batch_size, tokens_per_batch=spec.tokens_per_batch, seed=spec.seed
    )
    met = largest(lengths, learned, schedule)
    if steps < STEPS:
        places = order(len(corpus), spec.seed, 0)[: steps * spec.batch_size].reshape(steps, -1)
        turns = [largest(lengths[turn], learned[turn], schedule) for turn in places]
        met = Largest(**{name: max(getattr(turn, name) for turn in turns) for name in Largest.model_fields})
    return Amount(tokens=int(lengths.sum()), learned_tokens=int(learned.sum()), n_examples=len(lengths), largest=met)


def measured(case: Case) -> dict[str, Any]:
    """In this process: the peak when the base is open and after each step, and the seconds of each step."""
    settle_for_training()  # as a trainer does
    spec = spec_of(case)
    is_nf4 = spec.method.base_precision == "nf4"
    base: OpenBase = open_base(
        entry(sources(), case.base),
        cache_dir=CACHE,
        device="cpu",
        precision=case.precision,
        base_precision="nf4" if is_nf4 else "bf16",
    )
    shape = with_speed(shape_of(base.model, base.facts), base.device, base.dtype)
    model = RoutedModel(base.model)
    opened = memory_bytes(base.device)
    corpus = corpus_of(case, spec, shape.vocabulary)
    facts = with_reading(base.facts, model)
    method = METHODS[spec.method.type](spec.method, facts, generator=torch.Generator().manual_seed(0))
    run = Run(spec, method, corpus)
    peaks, seconds, tokens = [], [], []
    for event in train(model, [run]):
        if not isinstance(event, Step):
            raise RuntimeError(f"{case.name}: {event}")  # noqa: TRY004 - the run has failed
        peaks.append(memory_bytes(base.device))
        seconds.append(event.seconds)
        tokens.append(event.tokens)
    amount = amount_of(corpus, spec)
    return {
        "shape": shape.model_dump(mode="json"),
        "amount": amount.model_dump(mode="json"),
        "opened_bytes": opened,
        "peaks": peaks,
        "seconds": seconds,
        "tokens": tokens,
    }


def in_a_fresh_process(case: Case) -> dict[str, Any]:
    """What measured() says, of a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks.estimates", "--one", json.dumps(vars(case)), "--into", file.name]
        # A trainer sets it before torch is imported.
        subprocess.run(command, check=True, env=os.environ | ASKED_OF_TORCH)
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
    return found


def judged(case: Case, found: dict[str, Any], known: Constants) -> dict[str, Any]:
    """One row of the table: what was foretold, and by how much of what was measured it is off."""
    spec, shape = spec_of(case), BaseShape.model_validate(found["shape"])
    amount = Amount.model_validate(found["amount"])
    memory, peak = memory_of(shape, spec, amount, known), max(found["peaks"])
    corpus = corpus_of(case, spec, shape.vocabulary)
    probe = after_probe(shape, spec, amount, amount_of(corpus, spec, 2), found["peaks"][1])
    took = sum(found["seconds"][1:])
    foretold = seconds_of(_work(case, found), shape, known)
    return {
        "case": case.name,
        "foretold_bytes": memory.total,
        "measured_bytes": peak,
        "memory_error": memory.total / peak - 1,
        "probe_error": probe / peak - 1,
        "foretold_s": foretold,
        "measured_s": took,
        "time_error": foretold / took - 1,
        "terms": memory.model_dump(),
    }


def _work(case: Case, found: dict[str, Any]) -> dict[str, float]:
    """Of the steps after the first."""
    amount = Amount.model_validate(found["amount"])
    share = sum(found["tokens"][1:]) / amount.tokens
    work = work_of(BaseShape.model_validate(found["shape"]), spec_of(case), amount)
    return {name: value * share for name, value in work.items()}


def fitted(all_found: Sequence[tuple[Case, dict[str, Any]]], known: Constants) -> Constants:
    """The constants that make the relative errors' squares least, of memory and of time."""
    names = ["process", "bitsandbytes", *(name for name in KEPT if name not in UNFITTED), "head", "adapter"]
    rows, wanted, paces, works = [], [], [], []
    for case, found in all_found:
        spec, shape = spec_of(case), BaseShape.model_validate(found["shape"])
        amount, took, work = Amount.model_validate(found["amount"]), sum(found["seconds"][1:]), _work(case, found)
        paces.append(work["operations"] / took)
        works.append([work[n] / (shape.products_per_s or 1 if n == "operations" else 1) / took for n in WORK])
        if max(found["peaks"]) < 1.03 * found["opened_bytes"]:
            continue  # its peak was the base's opening
        library = {"bitsandbytes": 1e9 if needs_bitsandbytes(spec) else 0.0}
        values, peak = parts(shape, spec, amount) | {"process": 1e9} | library, max(found["peaks"])
        rows.append([values[name] / peak for name in names])
        wanted.append(1 - values["base"] / peak)
    changes = dict(zip(names, _rounded(not_negative(np.array(rows), np.array(wanted))), strict=True))
    changes = {name: value * (1e9 if name in ("process", "bitsandbytes") else 1) for name, value in changes.items()}
    pace = Pace(*_rounded(not_negative(np.array(works), np.ones(len(works)))))
    return dataclasses.replace(known, **changes, operations_per_s=float(f"{np.median(paces):.3g}"), pace=pace)


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def not_negative(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with no coefficient below zero: of every choice of columns whose solution has none, the best.

    With so few columns all choices can be gone through.
    """
    best, least = np.zeros(matrix.shape[1]), float(wanted @ wanted)
    for chosen in product([False, True], repeat=matrix.shape[1]):
        columns = np.flatnonzero(chosen)
        solved = np.linalg.lstsq(matrix[:, columns], wanted, rcond=None)[0]
        left = float(np.square(matrix[:, columns] @ solved - wanted).sum())
        if (solved >= 0).all() and left < least * (1 - 1e-6):
            best, least = np.zeros(matrix.shape[1]), left
            best[columns] = solved
    return best


def show(outcomes: Sequence[dict[str, Any]]) -> None:
    """The table."""
    table = Table("configuration", "foretold MB", "measured MB", "error", "after two steps", "time error")
    for row in outcomes:
        sizes = (f"{row[f'{name}_bytes'] / 1e6:.0f}" for name in ("foretold", "measured"))
        errors = (f"{row[f'{name}_error']:+.1%}" for name in ("memory", "probe", "time"))
        table.add_row(row["case"], *sizes, *errors)
    Console(width=120).print(table)


def summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worst errors, and how many configurations are within each target."""
    memory, probe, pace = (np.array([row[f"{n}_error"] for row in outcomes]) for n in ("memory", "probe", "time"))
    return {
        "configurations": len(outcomes),
        "memory_within_5_percent": int((np.abs(memory) <= TARGETS["memory"]).sum()),
        "memory_not_under_by_2_percent": int((memory >= -TARGETS["under"]).sum()),
        "memory_worst": [float(memory.min()), float(memory.max())],
        "probe_within_1_percent": int((np.abs(probe) <= TARGETS["probe"]).sum()),
        "probe_worst": [float(probe.min()), float(probe.max())],
        "time_within_20_percent": int((np.abs(pace) <= TARGETS["seconds"]).sum()),
        "time_worst": [float(pace.min()), float(pace.max())],
    }


def left_out(all_found: Sequence[tuple[Case, dict[str, Any]]], known: Constants) -> dict[str, Any]:
    """The errors where each configuration is foretold by constants fitted to all the others."""
    rows = []
    for number, (case, found) in enumerate(all_found):
        fit = fitted([*all_found[:number], *all_found[number + 1 :]], known)
        rows.append(judged(case, found, fit))
    off, pace = np.array([row["memory_error"] for row in rows]), np.array([row["time_error"] for row in rows])
    within, not_under = np.abs(off) <= TARGETS["memory"], off >= -TARGETS["under"]
    return {
        "time_within_20_percent": int((np.abs(pace) <= TARGETS["seconds"]).sum()),
        "time_worst": [float(pace.min()), float(pace.max())],
        "memory_within_5_percent": int(within.sum()),
        "memory_not_under_by_2_percent": int(not_under.sum()),
        "memory_worst": [float(off.min()), float(off.max())],
    }


def main() -> None:
    """Measure all, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="print the constants that would have fitted best")
    parser.add_argument("--raw", type=Path, default=CACHE / "estimates.jsonl", help="measurements, kept and reused")
    parser.add_argument("--again", action="store_true", help="measure anew what is kept")
    parser.add_argument("--kept", action="store_true", help="measure nothing: judge what is kept")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        options.into.write_text(json.dumps(measured(Case(**json.loads(options.one)))))
        return
    sources()
    raw = [] if options.again or not options.raw.exists() else options.raw.read_text().splitlines()
    kept = {row["case"]: row["found"] for row in map(json.loads, raw)}
    all_found = []
    for case in cases():
        if case.name not in kept and options.kept:
            continue
        if case.name not in kept:
            kept[case.name] = in_a_fresh_process(case)
            with options.raw.open("a") as file:
                file.write(json.dumps({"case": case.name, "found": kept[case.name]}) + "\n")
        all_found.append((case, kept[case.name]))
    known = CONSTANTS["cpu"]
    if options.fit:
        known = fitted(all_found, known)
        Console().print(known)
    outcomes = [judged(case, found, known) for case, found in all_found]
    show(outcomes)
    told = summary(outcomes) | {"each_left_out": left_out(all_found, known)}
    Console().print(told)
    RESULTS.write_text(json.dumps({"summary": told, "rows": outcomes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
