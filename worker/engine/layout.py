"""Whether an engine lays its base model's weights out anew to serve: on a CPU that is faster for twice the memory."""

from core.model import RoutedModel
from core.packed_model import pack_model, packed_bytes
from core.settings import Settings
from worker.room import host_bytes

SHARE = 4  # a copy may take one part in so many of the memory that is to be had


def lay_out(model: RoutedModel, settings: Settings) -> bool:
    """Whether the weights were laid out. On a CPU where the setting says so or, on `auto`, memory is plentiful."""
    if model.device.type != "cpu":
        return pack_model(model)  # which takes no more memory there
    needed = packed_bytes(model)
    wanted = SHARE * needed <= host_bytes() if settings.engine_packed == "auto" else settings.engine_packed
    return wanted and needed > 0 and pack_model(model)
