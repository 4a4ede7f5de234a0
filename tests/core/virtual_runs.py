"""Methods whose rows have virtual tokens or a prefix, and runs of them on a tiny model that is open."""

from dataclasses import replace

import numpy as np
import torch
from pydantic import TypeAdapter
from token_rows import PLAIN

from core.base.facts import facts_of
from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.effects import SoftPrompt, members_of
from core.methods import METHODS
from core.model import RoutedModel, Rows
from core.reading import with_reading
from core.routing import Routing
from core.run import Run
from core.specs.method import MethodSpec
from core.specs.training import TrainSpec

TEMPLATE = "{v:2}ab{v:1}{input}c{v:1}{target}"
KINDS = {
    "prefix kv": {"type": "prefix_tuning", "num_virtual_tokens": 3, "parametrization": "kv"},
    "prefix mlp": {"type": "prefix_tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "prefix hidden": {"type": "prefix_tuning", "num_virtual_tokens": 3, "parametrization": "hidden"},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 4},
    "ensemble": {"type": "prompt_tuning", "num_virtual_tokens": 4, "ensemble_size": 3},
    "p lstm": {
        "type": "p_tuning",
        "template": TEMPLATE,
        "encoder_reparameterization_type": "LSTM",
        "encoder_dropout": 0.2,
    },
    "p mlp": {"type": "p_tuning", "template": TEMPLATE, "encoder_reparameterization_type": "MLP"},
}
WORDS = [5, 17, 80, 3, 42, 9, 61, 33, 12, 7, 28]


def encode(text):
    """A word for each letter, the same wherever it stands; none is above 85."""
    return [5 + ord(letter) % 80 for letter in text]


def spec_of(kind, **changes):
    return TypeAdapter(MethodSpec).validate_python(KINDS[kind] | changes)


def opened(base, **routed):
    """The model of a base, and its facts with a tokeniser, reading and projecting."""
    facts = replace(facts_of(base), encode=encode)
    model = RoutedModel(base, **routed)
    return model, with_reading(facts, model)


def make(kind, facts, *, seed=0, **changes):
    spec = spec_of(kind, **changes)
    return METHODS[spec.type](spec, facts, generator=torch.Generator().manual_seed(seed))


def row_in(effect, words):
    """A row of these words as its effect wants it."""
    return effect.layout.around(words) if isinstance(effect, SoftPrompt) else list(words)


def logits(model, effects, rows):
    """Logits [T, V] of each row, all in one call."""
    routing = Routing.of_rows(effects)
    batch = Rows.of(rows, first_positions=routing.first_positions())
    with torch.no_grad(), model.wearing(routing):
        every = model.logits(model(batch))
    return [every[a:b] for a, b in zip(batch.starts, batch.starts[1:], strict=False)]


def corpus_for(method, *, rows=8, seed=0):
    """Rows that can be learned: all have one answer."""
    effect = members_of(method.effect())[0]
    random = np.random.default_rng(seed)
    return Corpus.of(_row(line, effect, random) for line in range(1, rows + 1))


def _row(line, effect, random):
    words = random.integers(3, 85, int(random.integers(3, 9))).tolist()
    prompt, answer = row_in(effect, words), [71, 13, 71]
    ids = np.array(prompt + answer, dtype=np.int32)
    return TokenRow(line, ids, np.arange(len(ids)) >= len(prompt))


def run_of(kind, facts, *, start=0, method=None, **changes):
    """start changes where the untrained adapter begins: what is loaded afterwards must not depend on it."""
    method = method or {}
    spec = TrainSpec(method=spec_of(kind, **method), **(PLAIN | changes))
    chosen = make(kind, facts, seed=spec.seed + 1000 * start, **method)
    return Run(spec, chosen, corpus_for(chosen))


def apart(left, right):
    return (left - right).abs().max().item()
