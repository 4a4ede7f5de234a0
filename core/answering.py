"""What a model says by itself to rows that wear one effect: greedily, by the one forward and its cache, as served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.cache import KVCache
from core.effects import Effect, KVPrefix
from core.model import RoutedModel, Rows
from core.routing import Routing

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Question:
    """A row to be continued by at most limit tokens, or up to one of ends, which is then its last."""

    ids: Sequence[int]  # a negative one is a virtual token, as in every row
    limit: int
    ends: frozenset[int]


@torch.no_grad()
def answers(model: RoutedModel, effect: Effect, questions: Sequence[Question]) -> Iterator[list[int]]:
    """Each question's answer, in order. Raises ValueError for an effect that is not finite or not of this model."""
    worn = model.resident(effect)
    for start in range(0, len(questions), ROWS_AT_ONCE):
        yield from _some(model, worn, questions[start : start + ROWS_AT_ONCE])


def _some(model: RoutedModel, worn: Effect, questions: Sequence[Question]) -> list[list[int]]:
    """All rows go forward together; a row that has ended leaves."""
    prefix = worn.keys.shape[1] if isinstance(worn, KVPrefix) else 0
    length = prefix + max(len(q.ids) + q.limit for q in questions)
    cache = KVCache.for_model(model, len(questions), length)
    said: list[list[int]] = [[] for _ in questions]
    for _ in questions:
        slot = cache.take()
        if slot is not None and isinstance(worn, KVPrefix):
            cache.put_prefix(slot, worn)
    # Whole prompts first, one by one, so that memory is that of the longest; then a token of each.
    running = [slot for slot, q in enumerate(questions) if q.limit > 0]
    for slot in running:
        said[slot] += _next(model, worn, cache, {slot: list(questions[slot].ids)})
    while running := [slot for slot in running if not _is_over(questions[slot], said[slot])]:
        drawn = _next(model, worn, cache, {slot: said[slot][-1:] for slot in running})
        for slot, token in zip(running, drawn, strict=True):
            said[slot].append(token)
    return said


def _is_over(question: Question, said: Sequence[int]) -> bool:
    return len(said) >= question.limit or said[-1] in question.ends


def _next(model: RoutedModel, worn: Effect, cache: KVCache, ids: dict[int, list[int]]) -> list[int]:
    """The likeliest token after each slot's new ids."""
    slots = list(ids)
    firsts = [cache.lengths[slot] for slot in slots]
    rows = Rows.of(list(ids.values()), first_positions=firsts, slots=slots, device=model.device)
    with model.wearing(Routing.of_rows([worn] * len(slots))):
        hidden = model(rows, cache)  # [N, H]
    ends = torch.tensor(rows.starts[1:], device=hidden.device) - 1
    likeliest: Tensor = model.logits(hidden[ends]).argmax(-1)  # [B]
    return [int(token) for token in likeliest]
