"""How little a run keeps for backward: no less than its device asks for, as far as is foretold. Pure arithmetic.

Keeping less costs time: a layer that is run again a forward of it, one whose input waits in host memory two copies.
"""

from collections.abc import Iterator

from core.estimate import memory_of
from core.measured_constants import CONSTANTS
from core.specs.estimate import Amount, BaseShape, Device
from core.specs.training import TrainSpec


def frugal_enough(shape: BaseShape, spec: TrainSpec, amount: Amount, device: Device) -> TrainSpec:
    """The same run if its foretold peak fits the device; else the first turn that does, or the one that takes least.

    Raises ValueError as estimate does.
    """
    known, best = CONSTANTS[device.kind], spec
    needed = memory_of(shape, best, amount, known).total
    for turned in _turns(spec, device):
        if needed <= device.memory_bytes:
            break
        less = memory_of(shape, turned, amount, known).total
        if less < needed:
            best, needed = turned, less
    return best


def _turns(spec: TrainSpec, device: Device) -> Iterator[TrainSpec]:
    yield spec.model_copy(update={"activation_checkpointing": True})
    if device.kind == "cuda":
        yield spec.model_copy(update={"activation_checkpointing": True, "activation_offload": True})
