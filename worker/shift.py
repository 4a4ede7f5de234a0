"""What it costs to serve an adapter that was trained on an NF4 base on the 16-bit one: how far its logits move.

Weights in NF4 differ from those they stand for by nine parts in a hundred, and an adapter learns to live with that.
"""

from typing import Any

import torch
from torch import Tensor

from core.base.catalogue import UnusableBaseModel
from core.base.load import NAMES, OpenBase, open_base
from core.data.batches import Corpus
from core.effects import Effect, members_of
from core.methods import Method
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.specs.assignment import Assignment

ROWS = 8  # of the training file, the first ones
MOST_BYTES = 8 << 30  # of a 16-bit base that is opened beside the other only to be compared


def measured_shift(
    method: Method, corpus: Corpus, base: OpenBase, model: RoutedModel, assignment: Assignment
) -> dict[str, Any]:
    """{"shift_on_16bit": …} for the adapter's details; nothing for one that was trained in 16 bits."""
    if base.base_precision == "bf16":
        return {}
    return {"shift_on_16bit": shift_on_16bit(method, corpus, base, model, assignment)}


def shift_on_16bit(
    method: Method, corpus: Corpus, base: OpenBase, model: RoutedModel, assignment: Assignment
) -> dict[str, Any]:
    """The greatest and the mean distance of a logit, and the share of tokens whose likeliest next one is the same.

    model: base, routed. Where the 16-bit base does not fit beside it: {"skipped": why}.
    """
    size_bytes = base.dense_bytes
    room_bytes = MOST_BYTES if base.device.type == "cpu" else min(MOST_BYTES, torch.cuda.mem_get_info()[0] // 2)
    if size_bytes > room_bytes:
        return {"skipped": f"the 16-bit base has {size_bytes} bytes; {room_bytes} are the most that is opened for this"}
    device, computed_in = base.device.type, NAMES[base.dtype]
    try:
        plain = open_base(assignment.base, cache_dir=assignment.cache_dir, device=device, precision=computed_in)
        return compare(method, corpus, model, RoutedModel(plain.model))
    except (UnusableBaseModel, MemoryError, torch.OutOfMemoryError) as error:
        return {"skipped": f"the 16-bit base could not be opened beside the other: {type(error).__name__}"}


@torch.no_grad()
def compare(method: Method, corpus: Corpus, one: RoutedModel, other: RoutedModel) -> dict[str, float | int]:
    """The same rows, wearing the same adapter, through two models."""
    greatest, total, same, tokens, logits = 0.0, 0.0, 0, 0, 0
    for effect in members_of(method.effect()):
        for place in range(min(ROWS, len(corpus))):
            ids = torch.from_numpy(corpus[place].ids)
            left, right = (_logits(model, effect, ids) for model in (one, other))  # [T, V]
            distance = (left - right).abs()
            greatest = max(greatest, float(distance.max()))
            total += float(distance.double().sum())
            same += int((left.argmax(-1) == right.argmax(-1)).sum())
            tokens, logits = tokens + len(ids), logits + distance.numel()
    return {
        "rows": min(ROWS, len(corpus)),
        "tokens": tokens,
        "greatest_distance": greatest,
        "mean_distance": total / logits,
        "same_argmax": same / tokens,
    }


def _logits(model: RoutedModel, effect: Effect, ids: Tensor) -> Tensor:
    """[T, V] in fp32, of a row by itself."""
    routing = Routing.of_rows([effect])
    with model.wearing(routing):
        hidden = model(Rows.of([ids], first_positions=routing.first_positions(), device=model.device))
    return model.logits(hidden).float()
