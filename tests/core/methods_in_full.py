"""Every method as tests wear it: made of its spec, its parameters moved away from where they start."""

import dataclasses

import numpy as np
import torch

from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.effects import Ensemble, KVPrefix, LowRank, SoftPrompt, members_of
from core.methods import METHODS
from core.run import Run
from core.specs.method import SPECS
from core.specs.training import TrainSpec
from tests.core.token_rows import PLAIN

# name -> spec fields. Lengths and ranks differ, so that nothing fits by chance.
WEARABLE = {
    "lora": {"type": "lora", "r": 4, "lora_alpha": 8.0},
    "dora": {"type": "lora", "r": 3, "use_dora": True},
    "qlora": {"type": "qlora", "r": 5},
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 3},
    "prefix kv": {"type": "prefix_tuning", "num_virtual_tokens": 3, "parametrization": "kv"},
    "prefix mlp": {"type": "prefix_tuning", "num_virtual_tokens": 5, "encoder_hidden_size": 16},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 4},
    "ensemble": {"type": "prompt_tuning", "num_virtual_tokens": 3, "ensemble_size": 2},
    "p-tuning": {
        "type": "p_tuning",
        "template": "{v:2} a {v:3}{input}b{v:2}{target}",
        "encoder_reparameterization_type": "LSTM",
    },
}
LOW_RANK = [name for name, fields in WEARABLE.items() if fields["type"] in ("lora", "qlora", "adalora")]
BY_TYPE = {spec.model_fields["type"].default: spec for spec in SPECS}


def spec_of(name, **changes):
    fields = {**WEARABLE[name], **changes}
    return BY_TYPE[fields["type"]](**fields)


def new_method(name, facts, *, seed=0, is_moved=True, **changes):
    """is_moved: as if it had learned something; else as it starts."""
    spec = spec_of(name, **changes)
    facts = dataclasses.replace(facts, encode=lambda text: [5 + ord(c) % 40 for c in text.strip()])
    generator = torch.Generator().manual_seed(seed)
    method = METHODS[spec.type](spec, facts, generator=generator)
    if is_moved:
        with torch.no_grad():
            for group in method.groups():
                for parameter in group.parameters:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def effects_of(method):
    """What its rows wear, without gradients."""
    with torch.no_grad():
        return [detached(effect) for effect in members_of(method.effect())]


def detached(effect):
    match effect:
        case LowRank():
            maps = {f.name: getattr(effect, f.name) for f in dataclasses.fields(effect)}
            held = {k: {s: t.detach() for s, t in m.items()} for k, m in maps.items() if k in ("a", "b", "gain") and m}
            return dataclasses.replace(effect, **held)
        case SoftPrompt(prompt, template):
            return SoftPrompt(prompt.detach(), template)
        case KVPrefix(keys, values):
            return KVPrefix(keys.detach(), values.detach())
        case Ensemble():
            raise AssertionError("a member is no ensemble")


def row_for(effect, words):
    """A row of these words as its effect wants it."""
    return effect.layout.around(words) if isinstance(effect, SoftPrompt) else list(words)


def corpus_for(method, *, rows=6, seed=0):
    """Random rows in the method's template, the second half of each learned."""
    layout = next((e.layout for e in effects_of(method) if isinstance(e, SoftPrompt)), None)
    random = np.random.default_rng(seed)

    def row(line):
        words = random.integers(3, 90, int(random.integers(6, 12))).tolist()
        head, tail = words[: len(words) // 2], words[len(words) // 2 :]
        head = layout.around(head) if layout else head
        learned = np.array([False] * len(head) + [True] * len(tail))
        return TokenRow(line, np.array(head + tail, np.int32), learned)

    return Corpus.of(row(line) for line in range(1, rows + 1))


def new_run(name, facts, *, seed=0, data_seed=0, is_moved=False, method=None, **changes):
    spec = TrainSpec(method=spec_of(name, **(method or {})), **(PLAIN | changes))
    made = new_method(name, facts, seed=seed, is_moved=is_moved, **(method or {}))
    return Run(spec, made, corpus_for(made, seed=data_seed))
