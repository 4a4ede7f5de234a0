"""Random token rows and runs on them, the same for the same arguments."""

from dataclasses import replace

import numpy as np
import torch

from core.base.facts import Site, facts_of
from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.methods import Lora
from core.run import Run
from core.specs.method import LoraSpec
from core.specs.training import TrainSpec

PLAIN = {
    "base_model": "tiny",
    "n_epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_seq_length": 32,
    "tokens_per_batch": 4096,
    "train_on": "assistant",
    "eval_steps": None,
    "n_checkpoints": 1,
    "seed": 11,
}


def spec(*, method=None, **changes):
    return TrainSpec(method=LoraSpec(**({"r": 4, "lora_alpha": 8.0} | (method or {}))), **(PLAIN | changes))


def random_corpus(rows, *, seed=0, vocabulary=64):
    random = np.random.default_rng(seed)
    return Corpus.of(_row(line, random, vocabulary) for line in range(1, rows + 1))


def _row(line, random, vocabulary):
    length = int(random.integers(3, 17))
    learned = random.random(length) < 0.6
    learned[0], learned[-1] = False, True
    return TokenRow(line, random.integers(0, vocabulary, length).astype(np.int32), learned)


def new_run(model, *, rows=10, data_seed=0, method=None, start=0, **changes):
    """start changes where the untrained adapter begins: what is loaded afterwards must not depend on it."""
    chosen = spec(method=method, **changes)
    generator = torch.Generator().manual_seed(chosen.seed + 1000 * start)
    lora = Lora(chosen.method, facts_of_routed(model), generator=generator)
    return Run(chosen, lora.to(model.device), random_corpus(rows, seed=data_seed))


def facts_of_routed(model):
    """The facts of a Llama whose layers are wrapped already, under the names that they had before."""
    sites = [Site(name, site.base.in_features, site.base.out_features) for name, site in model.sites.items()]
    weights = {name: site.base.weight.detach() for name, site in model.sites.items()}
    return replace(facts_of(model.base), sites=tuple(sites), weight=weights.__getitem__)
