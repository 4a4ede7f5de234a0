"""A row in a template through the one forward: virtual tokens that are words do what those words would."""

import numpy as np
import pytest
import torch
from torch import nn

from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.effects import SoftPrompt
from core.model import RoutedModel
from core.specs.template import parse
from core.trainer import evaluate

TEMPLATES = ("{v:4}{input}{target}", "{v:1}ab{v:2}{input}c{v:1}{target}", "{input}{v:4}{target}")
WORDS = [17, 42, 8, 63]  # what the virtual tokens are


class Fixed(nn.Module):
    """A method that has learned what it is given."""

    def __init__(self, effect):
        super().__init__()
        self._effect = effect

    def effect(self):
        return self._effect


def corpora(template):
    """The same three rows: with virtual tokens, and with the words that these are."""
    layout = parse(template).layout(lambda text: [ord(letter) - 80 for letter in text])
    random = np.random.default_rng(0)
    virtual, words = [], []
    for line in range(3):
        asked, answer = random.integers(3, 90, 4 + line).tolist(), random.integers(3, 90, 2 + line).tolist()
        ids = [*layout.around(asked), *answer]
        learned = np.arange(len(ids)) >= len(ids) - len(answer)
        virtual.append(TokenRow(line, np.array(ids, np.int32), learned))
        words.append(TokenRow(line, np.array([WORDS[-1 - i] if i < 0 else i for i in ids], np.int32), learned))
    return Corpus.of(virtual), Corpus.of(words)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_loss_of_a_row_whose_virtual_tokens_are_words_is_that_of_the_words(family, template, new_base):
    model = RoutedModel(new_base(family))
    with torch.no_grad():
        words_said = model.base.get_input_embeddings()(torch.tensor(WORDS))  # Gemma scales its table
    virtual, words = corpora(template)
    prompt = SoftPrompt(words_said)
    *_, found = evaluate(model, Fixed(prompt), virtual, 64)
    *_, expected = evaluate(model, Fixed(SoftPrompt(torch.zeros_like(prompt.prompt))), words, 64)
    assert found.count == expected.count
    assert found.loss == pytest.approx(expected.loss, abs=1e-5)
    # Negative control: other vectors in their places.
    *_, other = evaluate(model, Fixed(SoftPrompt(words_said.flip(0))), virtual, 64)
    assert abs(other.loss - expected.loss) > 1e-3
