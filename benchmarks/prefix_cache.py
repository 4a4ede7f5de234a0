"""Time to the first token of requests that share a prompt of 512 tokens, with the prefix cache and without.

Two engines on one SmolLM2-135M, one of them with a cache, are asked in turn: each request is the shared prompt and a
question of its own. The bare base, a LoRA and a soft prompt, in each precision asked for. The cached engine's first
request of each kind, which fills the cache, is not counted; its logits are held against a whole run's. Ends with 1
unless every median ratio is at most TARGET, and in fp32 every logit within 1e-5. Writes
benchmarks/results/prefix_cache.json.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from core.base.catalogue import entry
from core.base.load import OpenBase, open_base
from core.cache import KVCache
from core.effects import Effect, LowRank, SoftPrompt
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.generation import AdapterRef, GenerateSpec, QueueSpec, SamplingSpec
from worker.engine.engine import Engine
from worker.engine.intake import Intake
from worker.engine.prefix_cache import PrefixCache, Root

BASE = "smollm2-135m-instruct"
RESULTS = Path("benchmarks/results/prefix_cache.json")
SHARED, OWN = 512, 16  # tokens of a prompt: those all begin with, and its own
RANK, VIRTUAL = 16, 20
TARGET, CLOSE = 0.2, 1e-5
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Row:
    """One kind of row in one precision."""

    precision: str
    worn: str
    without_s: float  # median time to the first token
    with_s: float
    ratio: float  # median of the rounds' ratios
    lowest: float
    highest: float
    cpu_ratio: float  # of the process's CPU seconds instead, which a busy machine changes less
    logit_difference: float  # greatest, at the last token of a prompt


@dataclass(frozen=True)
class Times:
    """To the first token of one request."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Reads the arguments, runs every arm in turn, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["fp32", "bf16"])
    asked = parser.parse_args()
    rows = [row for precision in asked.precisions for row in measured(precision, asked.rounds)]
    show(rows)
    about = {
        "base_model": BASE,
        "tokens": {"shared": SHARED, "own": OWN},
        "rounds": asked.rounds,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    RESULTS.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    is_met = all(row.ratio <= TARGET and (row.precision != "fp32" or row.logit_difference <= CLOSE) for row in rows)
    sys.exit(0 if is_met else 1)


def measured(precision: Precision, rounds: int) -> list[Row]:
    """Every kind of row in one precision."""
    base = open_base(
        entry(EMBEDDED_BASE_MODELS, BASE), cache_dir=Path(".cache/tests"), device="cpu", precision=precision
    )
    model = RoutedModel(base.model)
    made: tuple[Effect, ...] = (lora(base), soft_prompt(base))
    effects = {f"{i:064x}": model.resident(effect) for i, effect in enumerate(made)}
    engines = [
        Engine(
            model,
            effects.__getitem__,
            rows=4,
            context=1024,
            adapter_memory_bytes=1 << 30,
            prefix_cache_bytes=cache_bytes,
            base=f"{BASE}/{precision}",
        )
        for cache_bytes in (0, 256 << 20)
    ]
    intake = Intake(
        base.tokenizer, base_model=BASE, context=1024, vocabulary=base.facts.vocabulary, stop_ids=frozenset()
    )
    found = []
    for worn, digest in (("base", None), *zip(("lora", "soft prompt"), effects, strict=True)):
        times = [[first_token(engine, intake, digest, n) for engine in engines] for n in range(rounds + 1)][1:]
        found.append(row_of(precision, worn, times, difference(model, effects[digest] if digest else None)))
        print(found[-1], flush=True)
    return found


def row_of(precision: str, worn: str, times: list[list[Times]], difference: float) -> Row:
    """The medians of the rounds' times without and with the cache."""
    ratios = [cached.wall_s / plain.wall_s for plain, cached in times]
    without_s, with_s = (statistics.median(arm.wall_s for arm in arms) for arms in zip(*times, strict=True))
    cpu_ratio = statistics.median(cached.cpu_s / plain.cpu_s for plain, cached in times)
    ratio, lowest, highest = statistics.median(ratios), min(ratios), max(ratios)
    return Row(precision, worn, without_s, with_s, ratio, lowest, highest, cpu_ratio, difference)


def prompt(own: int) -> tuple[int, ...]:
    """The shared tokens, and those of one request."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(100, 40_000, (SHARED,), generator=generator).tolist()
    return (*shared, *torch.randint(100, 40_000, (OWN,), generator=generator.manual_seed(100 + own)).tolist())


def first_token(engine: Engine, intake: Intake, digest: str | None, own: int) -> Times:
    """One request alone, from its submission to its first and only token."""
    spec = GenerateSpec(
        request_id="r",
        base_model=BASE,
        adapter=AdapterRef(id=digest[-4:], sha256=digest) if digest else None,
        prompt_ids=prompt(own),
        sampling=SamplingSpec(temperature=0, max_tokens=1),
        queue=QueueSpec(tenant="t"),
    )
    said: list[tuple[float, float]] = []
    sequence = intake.sequence(spec, lambda _: said.append((time.perf_counter(), time.process_time())))
    began, cpu_began = time.perf_counter(), time.process_time()
    engine.submit(sequence)
    while not engine.is_idle:
        if not engine.step():
            time.sleep(0.001)  # its adapter is on its way
    return Times(said[0][0] - began, said[0][1] - cpu_began)


def difference(model: RoutedModel, effect: Effect | None) -> float:
    """The greatest between the logits after a prompt run whole and after one whose shared tokens were reused."""
    virtual = list(effect.layout.before) if isinstance(effect, SoftPrompt) else []
    ids, cache = [*virtual, *prompt(0)], KVCache.for_model(model, 2, 1024)
    prefixes = PrefixCache(cache, memory_bytes=256 << 20, base=BASE)
    whole, other = cache.take(), cache.take()
    assert whole is not None
    assert other is not None
    expected = logits(model, effect, cache, ids, whole)
    links = prefixes.links(Root("t"), ids)[: SHARED // 16]
    prefixes.keep(whole, 0, links, None)
    assert prefixes.reuse(other, links, len(ids)) == SHARED == cache.lengths[other]
    return float((logits(model, effect, cache, ids, other) - expected).abs().max())


def logits(model: RoutedModel, effect: Effect | None, cache: KVCache, ids: list[int], slot: int) -> Tensor:
    """[V] in fp32 after the last token, running what is not in the slot."""
    first = cache.lengths[slot]
    rows = Rows.of([ids[first:]], first_positions=[first], slots=[slot])
    with torch.inference_mode(), model.wearing(Routing.of_rows([effect])):
        return model.logits(model(rows, cache)[-1:])[0].float()


def lora(base: OpenBase) -> LowRank:
    """On every linear layer of every block, its B no longer zero."""
    generator = torch.Generator().manual_seed(2)
    widths = {site.name: (site.width_in, site.width_out) for site in base.facts.sites}
    a = {site: torch.randn(RANK, i, generator=generator) / i**0.5 for site, (i, _) in widths.items()}
    b = {site: torch.randn(o, RANK, generator=generator) * 0.02 for site, (_, o) in widths.items()}
    return LowRank(a, b, dict.fromkeys(a, 1.0))


def soft_prompt(base: OpenBase) -> SoftPrompt:
    """In front of every row."""
    return SoftPrompt(torch.randn(VIRTUAL, base.facts.hidden, generator=torch.Generator().manual_seed(3)) * 0.1)


def show(rows: list[Row]) -> None:
    """A table, for people."""
    table = Table(
        *("precision", "row", "without, ms", "with, ms", "ratio", "lowest to highest", "CPU ratio", "logits differ by")
    )
    for row in rows:
        spread = f"{row.lowest:.3f} to {row.highest:.3f}"
        times = (f"{row.without_s * 1e3:.0f}", f"{row.with_s * 1e3:.0f}", f"{row.ratio:.3f}")
        table.add_row(row.precision, row.worn, *times, spread, f"{row.cpu_ratio:.3f}", f"{row.logit_difference:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
