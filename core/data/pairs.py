"""Preference pairs to pairs of token rows: the answer that was preferred and the one that was not. Knows no loss."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from core.data.tokens import TokenRow, conversations, encode_all
from core.specs.dataset import Example
from core.specs.template import Template


@dataclass(frozen=True, eq=False)
class PairRow:
    """One pair as a model sees it. Both rows begin with the same ids, up to the first that either learns."""

    line: int
    chosen: TokenRow
    rejected: TokenRow


def encode_pairs(
    examples: Iterable[tuple[int, Example]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    template: Template | None = None,
) -> Iterator[PairRow]:
    """The pairs of (line, example) pairs, in order. Only the two answers and their ends are learned.

    All examples must be preference pairs: of others two neighbours would be taken for one.

    Raises:
        TooLongError: either row has more than max_tokens.
        UnusableExampleError: the base model's chat template cannot write it.

    """
    rows = encode_all(conversations(examples), tokenizer, train_on="last", max_tokens=max_tokens, template=template)
    for chosen in rows:
        yield PairRow(chosen.line, chosen, next(rows))
