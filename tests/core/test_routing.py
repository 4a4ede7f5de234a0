"""Who wears what."""

import pytest
import torch

from core.effects import KVPrefix, LowRank, SoftPrompt
from core.ops.plain import Span
from core.routing import Routing, dropout_key, is_live, resident


def low_rank(scale=2.0, *, requires_grad=False):
    a, b = torch.randn(3, 5), torch.randn(7, 3)
    return LowRank({"q": a.requires_grad_(requires_grad)}, {"q": b.requires_grad_(requires_grad)}, {"q": scale}, 0.5)


def test_each_effect_has_one_slot_in_order_of_appearance():
    one, two = low_rank(), low_rank()
    routing = Routing.of_rows([None, two, one, two])
    assert routing.effects == (two, one)
    assert routing.slot_of_row == (-1, 0, 1, 0)
    assert routing.of_row(0) is None
    assert routing.of_row(2) is one


def test_neighbours_of_one_adapter_are_one_span_and_bare_or_virtual_rows_none():
    one, two = low_rank(), low_rank()
    routing = Routing.of_rows([one, one, None, one, SoftPrompt(torch.zeros(2, 4)), two])
    assert routing.spans([0, 2, 5, 6, 8, 9, 12]) == [Span(0, 5, 0), Span(6, 8, 0), Span(9, 12, 2)]


def test_rows_with_a_prefix_count_from_its_end():
    prefix = KVPrefix(torch.zeros(2, 5, 1, 4), torch.zeros(2, 5, 1, 4))
    assert Routing.of_rows([None, prefix, low_rank()]).first_positions() == [0, 5, 0]


def test_a_dropout_key_for_each_row_is_asked_for():
    with pytest.raises(ValueError, match="1 dropout keys for 2 rows"):
        Routing.of_rows([None, None], dropout_keys=[1])


def test_dropout_drops_at_the_rate_of_the_row_and_keeps_the_mean():
    routing = Routing.of_rows([low_rank(), None], dropout_keys=[1, 2])
    x = torch.ones(4000, 5)
    dropped = routing.dropped(x, "q", [0, 2000, 4000])
    assert (dropped[:2000] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert dropped[:2000].mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(dropped[2000:], x[2000:])
    assert routing.dropped(x, "another site", [0, 2000, 4000]) is x


def test_dropout_is_a_function_of_its_key_and_site_alone():
    x = torch.ones(6, 5)

    def drawn(key, site="q"):
        effect = LowRank({site: torch.ones(1, 5)}, {site: torch.ones(7, 1)}, {site: 1.0}, 0.5)
        return Routing.of_rows([effect], dropout_keys=[key]).dropped(x, site, [0, 6])

    torch.manual_seed(0)
    first = drawn(3)
    torch.manual_seed(1)
    assert torch.equal(drawn(3), first)
    assert not torch.equal(drawn(4), first)
    assert not torch.equal(drawn(3, "v"), first)
    # Written down, so that a run stopped under one version goes on under the next.
    assert dropout_key(seed=7, step=2, row=5) == 5861823344649097303


def test_a_resident_effect_is_a_copy_without_gradients_its_scale_folded_in():
    live = low_rank(3.0, requires_grad=True)
    served = resident(live, device="cpu", dtype=torch.bfloat16)
    assert is_live(live)
    assert not is_live(served)
    assert served.scale == {"q": 1.0}
    assert torch.equal(served.a["q"], live.a["q"].bfloat16())
    assert torch.equal(served.b["q"], (live.b["q"] * 3.0).bfloat16())
    same_type = resident(live, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        live.a["q"].zero_()
        live.b["q"].zero_()
    assert same_type.a["q"].abs().min() > 0
    assert same_type.b["q"].abs().min() > 0
