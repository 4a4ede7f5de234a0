"""The tables of benchmarks/serving.py."""

from typing import Any

from rich.table import Table

from benchmarks.serving_bench import Found, console

TARGETS = {
    "of_bound": "≥ 0.92",
    "base_of_floor": "≥ 0.60",
    "base_over_generate": "≥ 1.5",
    "base_over_vllm_base": "≥ 1.5",
    "of_sixteen": "≥ 0.95",
    "p99_of_without": "≤ 1.5",
}


def show(part: str, found: Found) -> None:
    """One part: its arms if it has any, its rows if it has any, and then every single figure."""
    if "arms" in found:
        _arms(part, found["arms"])
    if "rows" in found:
        _rows(part, found["rows"])
    for name, group in found.items():
        if isinstance(group, dict) and "arms" in group:
            _arms(f"{part}, {name}", group["arms"])
    table = Table("figure", "found", "target", title=part, title_justify="left")
    for name, value in found.items():
        if not isinstance(value, dict | list):
            table.add_row(name, _told(value), TARGETS.get(name, ""))
    console.print(table)


def _arms(part: str, arms: dict[str, Any]) -> None:
    table = Table(title=part, title_justify="left")
    for heading in ("arm", "tokens/CPU s", "decoding alone", "tokens/s", "ours is times it", "least to greatest"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, arm in arms.items():
        rates = (arm["tokens_per_cpu_s"], arm["decode_tokens_per_cpu_s"], arm["tokens_per_s"])
        spread = f"{arm['least']:.2f} to {arm['greatest']:.2f}"
        table.add_row(name, *(f"{rate:.1f}" for rate in rates), f"{arm['ours_over_it']:.2f}", spread)
    console.print(table)


def _rows(part: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=part, title_justify="left")
    for row in rows:
        table.add_row(*map(_told, row.values()))
    console.print(table)


def _told(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
