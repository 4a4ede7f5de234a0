"""Claims of the six papers at a size that a CPU can measure: `python -m benchmarks.claims`.

Prints what was measured beside what was expected, part by part; writes JSON and plots; exits 1 where an ordering that
must hold does not.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.claims import (
    encoder,
    four_bits,
    lengths,
    low_data,
    prefixes,
    pretraining,
    quantisers,
    ranks,
    starts,
    vote,
)
from benchmarks.claims.drawing import drawing
from benchmarks.claims.finding import Finding

PARTS: dict[str, Callable[[Path], Finding]] = {
    "quantisers": quantisers.measure,
    "pretraining": pretraining.measure,
    "starts": starts.measure,
    "lengths": lengths.measure,
    "prefixes": prefixes.measure,
    "encoder": encoder.measure,
    "low_data": low_data.measure,
    "vote": vote.measure,
    "ranks": ranks.measure,
    "four_bits": four_bits.measure,
}
console = Console(width=120)


def main() -> int:
    """Measure the parts that are asked for, all if none is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--cache", type=Path, default=Path(".cache/claims"), help="for the pre-trained toy model")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where figures are written")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # tiny products gain nothing from a second thread and lose much on a busy machine
    found = {}
    for name in asked.only or PARTS:
        found[name] = timed(PARTS[name], asked.cache)
        show(name, found[name])
        keep(name, found[name], asked.results)
    return 0 if all(finding.holds for finding in found.values()) else 1


def timed(measure: Callable[[Path], Finding], cache: Path) -> Finding:
    """With the seconds it took."""
    began = time.perf_counter()
    finding = measure(cache)
    return replace(finding, seconds=round(time.perf_counter() - began, 1))


def show(name: str, finding: Finding) -> None:
    """A table of its figures, a line for each check."""
    table = Table(title=f"{name}: {finding.claim}", title_justify="left")
    for column in ("", "", "measured", "expected"):
        table.add_column(column, justify="right" if column else "left")
    for figure in finding.figures:
        expected = "" if figure.expected is None else f"{figure.expected:.4g}"
        table.add_row(figure.group, figure.name, f"{figure.measured:.4g}", expected)
    console.print(table)
    for check in finding.checks:
        says = "[green]holds[/]" if check.holds else "[red]FAILS[/]"
        console.print(f"  {says} by {check.by:+.4g}: {check.says}")
    console.print(f"  {finding.seconds:.1f} s\n")


def keep(name: str, finding: Finding, results: Path) -> None:
    """Adds it to claims.json, and draws it. What other parts wrote stays."""
    path = results / "claims.json"
    all_parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    checks = [asdict(check) | {"holds": check.holds} for check in finding.checks]
    all_parts[name] = asdict(finding) | {"checks": checks}
    results.joinpath("claims").mkdir(parents=True, exist_ok=True)
    text = json.dumps({part: all_parts[part] for part in PARTS if part in all_parts}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    (results / "claims" / f"{name}.svg").write_text(drawing(finding), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
