"""Traps that public trainers fall into, each with what protects us from it taken out. docs/training-traps.md has all.

Here stand those that no test of a room already holds. Each test first shows the law, then breaks the protection within
the test and shows that the law would notice.
"""

import numpy as np
import pytest
import torch
from methods_in_full import WEARABLE, corpus_for, effects_of, new_method, new_run
from token_rows import new_run as new_lora_run
from torch.nn.functional import cross_entropy

from core import trainer
from core.base.nf4 import Linear4bit, quantise_linears
from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.linear import Head
from core.losses import next_token_loss
from core.methods import AdaLora
from core.model import RoutedModel, Rows
from core.preferences import nats_of
from core.routing import Routing
from core.trainer import train

NAMES = sorted(WEARABLE)
TINY = 1e-6  # of a gradient's norm, in fp32


def gradients(model, name, facts, **changes):
    """Of one step of three rows, an uneven last window among them, as the optimiser gets them, nothing clipped."""
    run = new_run(name, facts, is_moved=True, batch_size=4, max_grad_norm=1000.0, **changes)
    run.step = 1  # of six rows the second step has the two that are left
    kept = []
    run.optimiser.step = lambda: kept.extend(p.grad.clone() for p in run.parameters)
    run.method.after_step = lambda *_: None
    next(train(model, [run]))
    return torch.cat([g.flatten() for g in kept])


def apart(left, right):
    """The distance of two gradients, as a part of their size."""
    return float((left - right).norm() / right.norm())


def by_its_own_tokens(original):
    """As trainers that take the mean of each micro-batch: its loss over its own learned tokens."""

    def backward(model, worn, weights):
        rows = {(w.owner, w.key): int(w.row.learned.sum()) for w in worn}  # once each, however many members wear it
        own = {run: sum(count for (owner, _), count in rows.items() if owner is run) for run in weights}
        return original(model, worn, own)

    return backward


@pytest.mark.parametrize("name", NAMES)
def test_row_1_a_gradient_is_the_same_however_its_batch_is_cut(name, llama, new_facts, monkeypatch):
    whole = gradients(llama, name, new_facts())
    for tokens_per_batch in (1, 20, 40):
        assert apart(gradients(llama, name, new_facts(), tokens_per_batch=tokens_per_batch), whole) < 5 * TINY
    monkeypatch.setattr(trainer, "learn_from", by_its_own_tokens(trainer.learn_from))
    assert apart(gradients(llama, name, new_facts(), tokens_per_batch=1), whole) > 1e-2


def test_row_2_adaloras_penalty_is_in_the_gradient_once_however_the_batch_is_cut(llama, new_facts, monkeypatch):
    whole = gradients(llama, "adalora", new_facts())
    cut = gradients(llama, "adalora", new_facts(), tokens_per_batch=1)
    monkeypatch.setattr(AdaLora, "penalty", lambda _: torch.zeros(()))
    without = gradients(llama, "adalora", new_facts())
    assert apart(cut, whole) < 5 * TINY
    assert apart(without, whole) > 1e-3
    assert apart(cut - gradients(llama, "adalora", new_facts(), tokens_per_batch=1), whole - without) < 1e-4


def test_row_7_a_token_that_elsewhere_is_a_pad_counts_as_what_it_is(llama):
    ids = np.array([5, 0, 7, 2, 0, 0], np.int32)  # 0 is this base's pad, 2 its end
    learned = np.array([False, True, True, True, True, True])
    run = new_lora_run(llama, batch_size=1)
    run.corpus = Corpus.of([TokenRow(1, ids, learned)])
    run.steps_per_epoch = 1
    logits = llama_logits(llama, ids)
    said = torch.from_numpy(ids).long()
    expected = cross_entropy(logits[:-1], said[1:])
    assert next(train(llama, [run])).loss == pytest.approx(expected.item(), abs=1e-5)
    by_id = said[1:] != 0  # the control: masked by the pad's id, as where a collator finds the mask itself
    assert abs(cross_entropy(logits[:-1][by_id], said[1:][by_id]).item() - expected.item()) > 1e-3


def llama_logits(model, ids):
    """[T, V] of the bare base, by the same forward."""
    with torch.no_grad(), model.wearing(Routing.of_rows([None])):
        return model.logits(model(Rows.of([torch.from_numpy(ids)])))


@pytest.mark.parametrize("name", NAMES)
def test_rows_8_and_9_a_documents_loss_is_what_it_is_alone(name, llama, new_facts):
    """Virtual tokens stand before, within and behind each document's words; a prefix before each one's own."""
    method = new_method(name, new_facts())
    worn, documents = effects_of(method)[0], list(corpus_for(method, rows=5))
    together = nats_of(llama, documents, [worn] * 5)
    alone = torch.cat([nats_of(llama, [row], [worn]) for row in documents])
    assert (together - alone).abs().max() < 1e-4
    # The control: two documents as one row, as where packing forgets where a document begins.
    one, other = documents[:2]
    joined = TokenRow(1, np.concatenate([one.ids, other.ids]), np.concatenate([one.learned, other.learned]))
    assert abs(nats_of(llama, [joined], [worn]) - alone[:2].sum()) > 1e-3


def test_row_11_a_step_of_a_hundred_thousandth_moves_every_entry_on_a_bf16_base(new_base, new_facts):
    model = RoutedModel(new_base("llama", torch.bfloat16))
    run = new_run("lora", new_facts(), is_moved=True, learning_rate=1e-5, lr_scheduler="constant", warmup_ratio=0.0)
    before = [p.detach().clone() for p in run.parameters]
    next(train(model, [run]))
    moved = [(p != old).float().mean().item() for p, old in zip(run.parameters, before, strict=True)]
    assert min(moved) > 0.99
    kept = [
        (p.bfloat16() != old.bfloat16()).float().mean().item() for p, old in zip(run.parameters, before, strict=True)
    ]
    assert max(kept) < 0.5  # the control: as masters in bf16 would have kept them


def test_row_12_a_base_in_4_bits_keeps_all_else_in_16(new_base):
    base = new_base("llama", torch.bfloat16)
    quantise_linears(base, head=base.get_output_embeddings(), device=base.device, dtype=torch.bfloat16)
    others = [
        p for module in base.modules() if not isinstance(module, Linear4bit) for p in module.parameters(recurse=False)
    ]
    assert len(others) > 3
    assert {p.dtype for p in others} == {torch.bfloat16}
    # The control: as preparing for k-bit training leaves them. Of this base that is more than a fifth of all its bytes.
    stored = sum(b.nbytes for b in base.buffers()) + sum(p.nbytes for p in base.parameters())
    assert sum(p.float().nbytes - p.nbytes for p in others) > stored / 5


def test_row_20_a_softmax_over_a_wide_vocabulary_has_no_drift_in_bf16():
    """The mean over many tokens, against fp32 softmax of the same logits; rounding must not lean to one side."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(513, 32, generator=generator).bfloat16()
    weight = torch.randn(4096, 32, generator=generator).bfloat16() * 0.3
    ids, learned = torch.randint(0, 4096, (513,), generator=generator), torch.arange(513) > 0
    model = type("HasHead", (), {"head": Head(weight, None, None)})()
    loss = next_token_loss(model, hidden, ids, learned, [0, 513])
    logits = (hidden @ weight.T)[:-1]
    exact = cross_entropy(logits.float(), ids[1:])
    assert loss.total.item() / loss.count == pytest.approx(exact.item(), abs=1e-5)
    # The control: the mass summed in bf16, one part of the vocabulary after another.
    peak = logits.max(-1, keepdim=True).values
    mass = torch.zeros(512, dtype=torch.bfloat16)
    for part in (logits - peak).exp().split(64, dim=-1):
        for column in part.split(8, dim=-1):
            mass = mass + column.sum(-1)
    drifted = (peak[:, 0].float() + mass.float().log() - logits.gather(1, ids[1:, None])[:, 0].float()).mean()
    assert abs(drifted.item() - exact.item()) > 1e-4
