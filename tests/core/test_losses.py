"""The chunked loss against plain cross-entropy over whole logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from core import losses
from core.losses import next_token_loss, token_losses
from core.model import RoutedModel

STARTS = (0, 5, 6, 20)


def batch(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 64, generator=generator).to(dtype).requires_grad_()
    learned = torch.rand(20, generator=generator) < 0.6
    learned[list(STARTS[:-1])] = False
    return hidden, torch.randint(0, 99, (20,), generator=generator), learned


def plain(model, hidden, ids, learned):
    """Total and gradient in fp32, from all logits at once."""
    leaf = hidden.detach().float().requires_grad_()
    weight = model.base.get_output_embeddings().weight.float()
    logits = leaf @ weight.T
    cap = getattr(model.base.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    total = cross_entropy(logits[:-1][learned[1:]], ids[1:][learned[1:]], reduction="sum")
    return total, torch.autograd.grad(total, leaf)[0], logits


@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_loss_and_gradient_equal_plain_cross_entropy(family, chunk, new_base, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    model = RoutedModel(new_base(family))
    hidden, ids, learned = batch(torch.float32)
    expected, gradient, logits = plain(model, hidden, ids, learned)
    loss = next_token_loss(model, hidden, ids, learned, STARTS)
    (loss.total / 7).backward()
    torch.testing.assert_close(loss.total, expected, atol=1e-6, rtol=1e-6)
    assert (hidden.grad - gradient / 7).abs().max() < 1e-6
    assert loss.count == int(learned.sum())
    assert loss.correct == int((logits.argmax(-1)[:-1] == ids[1:])[learned[1:]].sum())


def test_in_bf16_only_the_products_are_rounded(new_base):
    model = RoutedModel(new_base("llama", torch.bfloat16))
    hidden, ids, learned = batch(torch.bfloat16)
    expected, gradient, _ = plain(model, hidden, ids, learned)
    loss = next_token_loss(model, hidden, ids, learned, STARTS)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(expected.item(), rel=2e-3)
    assert hidden.grad.dtype == torch.bfloat16
    assert (hidden.grad.float() - gradient).norm() / gradient.norm() < 1e-2


def test_a_logit_bias_is_part_of_the_loss(new_base):
    model = RoutedModel(new_base())
    head = model.base.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.randn(99), requires_grad=False)
    hidden, ids, learned = batch(torch.float32)
    expected = cross_entropy(head(hidden)[:-1][learned[1:]], ids[1:][learned[1:]], reduction="sum")
    torch.testing.assert_close(next_token_loss(model, hidden, ids, learned, STARTS).total, expected)


def test_tokens_that_are_not_learned_get_no_gradient_and_change_no_loss(llama):
    hidden, ids, learned = batch(torch.float32)
    loss = next_token_loss(llama, hidden, ids, learned, STARTS)
    loss.total.backward()
    predicts = torch.cat([learned[1:], torch.tensor([False])])
    assert not hidden.grad[~predicts].any()
    assert hidden.grad[predicts].abs().sum(-1).min() > 0
    other = torch.where(learned, ids, (ids + 1) % 99)
    assert torch.equal(next_token_loss(llama, hidden, other, learned, STARTS).total, loss.total)


def test_without_gradients_the_loss_is_the_same(llama):
    hidden, ids, learned = batch(torch.float32)
    with torch.no_grad():
        quiet = next_token_loss(llama, hidden, ids, learned, STARTS)
    loss = next_token_loss(llama, hidden, ids, learned, STARTS)
    assert torch.equal(quiet.total, loss.total)
    assert not quiet.total.requires_grad


def test_a_batch_without_learned_tokens_costs_nothing(llama):
    hidden, ids, learned = batch(torch.float32)
    loss = next_token_loss(llama, hidden, ids, torch.zeros_like(learned), STARTS)
    loss.total.backward()
    assert (loss.total.item(), loss.count, loss.correct) == (0.0, 0, 0)
    assert not hidden.grad.any()


def test_a_rows_first_token_cannot_be_learned(llama):
    hidden, ids, learned = batch(torch.float32)
    learned[5] = True
    with pytest.raises(ValueError, match="first token of a row"):
        next_token_loss(llama, hidden, ids, learned, STARTS)


def test_a_virtual_token_cannot_be_learned(llama):
    hidden, ids, learned = batch(torch.float32)
    ids[learned.nonzero()[0]] = -1
    with pytest.raises(ValueError, match="virtual token"):
        next_token_loss(llama, hidden, ids, learned, STARTS)


def test_what_neighbouring_rows_cost_is_cut_from_what_all_do(llama):
    hidden, ids, learned = batch(torch.float32)
    whole = token_losses(llama, hidden, ids, learned, STARTS)
    alone = token_losses(llama, hidden[5:], ids[5:], learned[5:], (0, 1, 15))
    part = whole.between(1, 3)
    torch.testing.assert_close(part.nats, alone.nats, atol=1e-6, rtol=1e-6)
    assert torch.equal(part.hits, alone.hits)
    assert torch.equal(part.rows, alone.rows)
