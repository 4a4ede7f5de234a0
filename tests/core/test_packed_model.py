"""A model whose weights are laid out for small batches says what it said before."""

import pytest
import torch

from core.model import RoutedModel, Rows
from core.ops.packed import FEW, pack
from core.packed_model import pack_model
from core.routing import Routing


def said(model, effects, lengths):
    """Logits of every token of rows of these lengths, without gradients."""
    rows = [[(3 + 7 * n + i) % 90 for i in range(length)] for n, length in enumerate(lengths)]
    with torch.inference_mode(), model.wearing(Routing.of_rows(effects)):
        return model.logits(model(Rows.of(rows)))


def test_rows_of_low_rank_and_of_the_base_say_packed_what_they_say_plain(model, family, new_facts, new_lora):
    lora = model.resident(new_lora(new_facts(family), r=4).effect())
    before = said(model, [lora, None], [5, 3])
    is_packed = pack_model(model)
    torch.testing.assert_close(said(model, [lora, None], [5, 3]), before, atol=1e-5, rtol=1e-5)
    # GPT-2 keeps its weights the other way round; its head alone is packed.
    assert is_packed == (family != "gpt2")


@pytest.mark.parametrize(("tokens", "reads_packed"), [(FEW, True), (FEW + 1, False)])
def test_small_batches_read_the_packed_weights_and_large_ones_do_not(tokens, reads_packed, new_base):
    model = RoutedModel(new_base())
    before = said(model, [None], [tokens])
    pack_model(model)
    for site in model.sites.values():
        site.packed = pack(torch.zeros_like(site.base.weight))
    assert torch.allclose(said(model, [None], [tokens]), before, atol=1e-5) != reads_packed


def test_gradients_flow_through_a_packed_model_as_through_a_plain_one(new_base, new_facts, new_lora):
    found = []
    for is_packed in (False, True):
        model, lora = RoutedModel(new_base()), new_lora(new_facts(), r=2)
        if is_packed:
            pack_model(model)
        with model.wearing(Routing.of_rows([lora.effect()])):
            model.logits(model(Rows.of([[5, 6, 7, 8]]))).square().sum().backward()
        found.append([p.grad for p in lora.parameters()])
    for plain, packed in zip(*found, strict=True):
        assert torch.equal(plain, packed)
