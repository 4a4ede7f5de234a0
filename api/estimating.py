"""What a planned job will take: an engine measures its files, trainers say their device, jobs done say the pace."""

import statistics
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync

from api import errors
from api.job_plan import Plan, too_long
from api.resources import Resources
from core.estimate import estimate
from core.frugality import frugal_enough
from core.records import jobs, presences
from core.specs.estimate import Amount, BaseShape, Device, Estimate, Largest, ScheduleSpec
from core.specs.generation import MeasureSpec
from core.specs.training import TrainSpec

NEWEST = 9  # jobs that a pace is the median of


async def estimated(resources: Resources, planned: Plan) -> Estimate | None:
    """None where no engine can count now. Raises ClientError 400 for rows that are too long or a layer not there.

    It is of the plan as Plan.settled() then has it.
    """
    measured = await _measured(resources, planned)
    if measured is None or not measured.training.get("shape") or not measured.training.get("largest"):
        return None  # no engine, or one of a version that does not say
    spec, training = planned.spec, measured.training
    amount = Amount(
        tokens=training["tokens"],
        learned_tokens=training["learned_tokens"],
        n_examples=training["n_examples"] // (2 if spec.dpo else 1),  # an engine counts rows
        largest=Largest.model_validate(training["largest"]),
        validation_tokens=measured.validation["tokens"] if measured.validation else 0,
    )
    device = await run_sync(_largest_device, resources)
    shape = BaseShape.model_validate(training["shape"])
    try:
        if device is not None and planned.may_keep_less and not resources.settings.divide_base:
            spec = frugal_enough(shape, spec, amount, device)
        pace = await run_sync(_pace, resources, spec)
        return estimate(shape, spec, amount, device, tokens_per_s=pace)
    except ValueError as error:
        raise errors.bad_request(str(error), param="peft.target_modules", code="invalid_value") from None


def must_fit(found: Estimate) -> None:
    """Raises ClientError 400, with which knob to turn and to what, where a job cannot fit its device."""
    if found.fits is not False or found.device is None:
        return
    gib = 1 << 30
    assert found.memory_range
    needed, there = found.memory_range[0] / gib, found.device.memory_bytes / gib
    knobs = " or ".join(f"{a.param} to {'true' if a.value is True else a.value}" for a in found.advice)
    what = f"set {knobs}" if knobs else "no single setting makes it fit: take a smaller base model or a larger machine"
    details = [{"param": a.param, "value": a.value, "memory_bytes": a.memory_bytes} for a in found.advice]
    raise errors.bad_request(
        f"The job would take {needed:.2f} GiB at least at its peak, and its device has {there:.2f} GiB: {what}.",
        param=found.advice[0].param if found.advice else "model",
        code="does_not_fit",
        details=details,
    )


@dataclass(frozen=True)
class _Counted:
    """What an engine said of a job's files."""

    training: dict[str, Any]
    validation: dict[str, Any] | None


async def _measured(resources: Resources, planned: Plan) -> _Counted | None:
    spec = planned.spec
    schedule = ScheduleSpec(
        n_epochs=spec.n_epochs,
        batch_size=spec.batch_size,
        tokens_per_batch=max(1, spec.tokens_per_batch // spec.method.members),
        seed=spec.seed,
        is_of_pairs=spec.dpo is not None,
    )
    said: list[dict[str, Any] | None] = []
    for param, file in (("training_file", planned.training_file), ("validation_file", planned.validation_file)):
        if file is None:
            said.append(None)
            continue
        asked = MeasureSpec(
            base_model=spec.base_model,
            file_sha256=file.blob_sha256,
            max_tokens=spec.max_seq_length,
            template=spec.method.row_template,
            train_on="last" if spec.dpo else spec.train_on,
            schedule=schedule if param == "training_file" else None,
        )
        found = await resources.engines.measure(asked)
        if found and found["too_long"]:
            raise too_long(param, spec.max_seq_length, found["too_long"])
        said.append(found)
    training, validation = said
    return None if training is None else _Counted(training, validation)


def _largest_device(resources: Resources) -> Device | None:
    """That a living trainer has."""
    with resources.database.session() as session:
        said = [trainer.details.get("device") for trainer in presences.alive(session, "trainer")]
    devices = [Device.model_validate(device) for device in said if device]
    return max(devices, key=lambda device: device.memory_bytes, default=None)


def _pace(resources: Resources, spec: TrainSpec) -> float | None:
    """How many tokens a second earlier jobs of this kind learned."""
    with resources.database.session() as session:
        paces = jobs.paces(session, spec, newest=NEWEST)
    return statistics.median(paces) if paces else None
