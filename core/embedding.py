"""What enters the first layer: words from the base's table, what adapters learned of it, and virtual tokens."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.effects import SoftPrompt
from core.ops.plain import Span
from core.routing import Routing


def embedded(base: PreTrainedModel, table: str, ids: Tensor, starts: Sequence[int], routing: Routing) -> Tensor:
    """Embeddings [N, H] of tokens [N] of B rows: of words from the table of this name, of virtual tokens from prompts.

    Raises:
        ValueError: a row has a virtual token that its effect has not.

    """
    known = ids.clamp(min=0)
    words = base.get_input_embeddings()(known)
    words = routing.noised(_reworded(base, table, words, known, routing.spans(starts), routing), starts)
    is_virtual = ids < 0
    if not bool(is_virtual.any()):
        return words
    for row, (start, stop) in enumerate(pairwise(starts)):
        here = is_virtual[start:stop].nonzero()[:, 0] + start
        if not len(here):
            continue
        effect = routing.of_row(row)
        wanted = -1 - ids[here]
        count = effect.prompt.shape[0] if isinstance(effect, SoftPrompt) else 0
        if not isinstance(effect, SoftPrompt) or int(wanted.max()) >= count:
            raise ValueError(f"row {row} has virtual token {int(wanted.max())}, its soft prompt {count} tokens")
        words = words.index_copy(0, here, effect.prompt[wanted].to(words.dtype))
    return words


def _reworded(  # noqa: PLR0917
    base: PreTrainedModel, table: str, words: Tensor, ids: Tensor, spans: Sequence[Span], routing: Routing
) -> Tensor:
    """The words [N, H] of tokens ids [N], with what low-rank rows learned of the table added to theirs."""
    parts = routing.parts(table)
    # A table may multiply what it holds (Gemma does); what is added to what it holds is multiplied too.
    factor = getattr(base.get_input_embeddings(), "embed_scale", 1.0)
    for start, stop, slot in spans:
        part = parts[slot]
        if part is not None:
            thin = part.a[:, ids[start:stop]].T  # [n, R]
            added = (thin @ part.b.T) * (part.scale * factor)
            words = words.index_add(0, torch.arange(start, stop, device=words.device), added.to(words.dtype))
    return words
