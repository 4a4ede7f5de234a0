"""A job's values as they are in force, and where each comes from.

It was chosen, resolved from "auto", found by a search, or left as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from api import shapes
from core.records.tables import Job
from core.specs.method import SPECS, AdaLoraSpec
from core.specs.training import HyperparametersRequest, TrainingRequest, TrainSpec

Origin = Literal["chosen", "auto", "search", "default"]
# A nested method or OpenAI's older places of the same knobs: core/specs says which values may be "auto".
_REQUESTS: Mapping[str, type[BaseModel]] = {"hyperparameters": HyperparametersRequest, "training": TrainingRequest}
_METHODS: Mapping[str, type[BaseModel]] = {spec.model_fields["type"].default: spec for spec in SPECS}


@dataclass(frozen=True)
class Value:
    """One value of a job. name: as a request writes it, dotted."""

    name: str
    value: Any
    origin: Origin


def in_force(job: Job) -> list[Value]:
    """All of a job's values, in the order of its object; its files and its name are not among them."""
    spec = TrainSpec.model_validate(job.spec)
    shape = shapes.resolved(spec)
    match spec.method:
        case AdaLoraSpec() if job.total_steps:  # what depends on the number of steps, which a trainer alone finds out
            shape["peft"] |= dict(zip(("tinit", "tfinal"), spec.method.phases(job.total_steps), strict=True))
    found = [Value("model", job.base_model, "chosen")]
    for section, values in shape.items():
        of_section = _REQUESTS.get(section) or _METHODS[values["type"]]
        asked = _asked(job.request, section)
        found += [
            Value(f"{section}.{name}", value, _origin(of_section, name, asked))
            for name, value in values.items()
            if (section, name) != ("peft", "type")
        ]
    found.insert(1, Value("peft.type", shape["peft"]["type"], "chosen"))
    seed: Origin = "auto" if job.request.get("seed") is None else "chosen"
    return [*found, Value("seed", job.seed, seed)]


def differences(jobs: Sequence[Job]) -> list[tuple[str, list[Value | None]]]:
    """Of each name by which the jobs' values differ, every job's value; None where its method knows no such value."""
    columns = [{one.name: one for one in in_force(job)} for job in jobs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name) for column in columns]) for name in names]
    return [(name, row) for name, row in rows if any(_said(one) != _said(row[0]) for one in row)]


def _said(one: Value | None) -> tuple[bool, Any]:
    return one is not None, one.value if one else None


def _asked(request: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """What a client wrote of a section, wherever it wrote it."""
    method = request.get("method") or {}
    nested = method.get(method.get("type", ""), None) or {}
    if section != "peft":
        return {**(nested.get(section) or {}), **(request.get(section) or {})}
    inner = nested.get("peft") or ({} if method.get("type") in ("supervised", "dpo") else nested)
    return {**inner, **(request.get(section) or {})}


def _origin(spec: type[BaseModel], name: str, asked: Mapping[str, Any]) -> Origin:
    if asked.get(name, "auto") == "search":
        return "search"
    if asked.get(name, "auto") != "auto":
        return "chosen"
    field = spec.model_fields.get(name)
    return "auto" if field is not None and field.default == "auto" else "default"
