"""The fast arithmetic equals the plain one, in values and in gradients."""

import gc
from dataclasses import replace

import pytest
import torch

from core.effects import LowRank
from core.linear import _short
from core.ops import grouped, plain
from core.ops.packed import is_packable, pack, packed_product
from core.ops.plain import Part, Span
from core.ops.pool import NARROW, Paging, RankPool

SPANS = [Span(1, 4, 0), Span(4, 6, 2), Span(8, 9, 1), Span(9, 12, 0)]  # tokens 0, 6, 7 and 12 wear nothing


def matrices(*, requires_grad: bool = False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    parts = [Part(draw(3, 5), draw(7, 3), 2.0), None, Part(draw(1, 5), draw(7, 1), 0.5)]
    return draw(13, 7), draw(13, 5), parts


def test_grouped_equals_plain_without_gradients():
    y, x, parts = matrices()
    expected = plain.add_low_rank(y, x, parts, SPANS)
    with torch.no_grad():
        here = grouped.add_low_rank(y.clone(), x, parts, SPANS)
    torch.testing.assert_close(here, expected)
    assert torch.equal(here[[0, 6, 7, 8, 12]], y[[0, 6, 7, 8, 12]])
    assert not torch.allclose(plain.add_low_rank(y, x, parts[::-1], SPANS), expected)


def test_grouped_equals_plain_in_value_and_in_every_gradient():
    found = []
    for add in (plain.add_low_rank, grouped.add_low_rank):
        y, x, parts = matrices(requires_grad=True)
        out = add(y, x, parts, SPANS)
        weights = torch.arange(out.numel(), dtype=torch.float64).view_as(out).sin()
        leaves = [y, x, *(t for p in parts if p is not None for t in (p.a, p.b))]
        found.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for here, expected in zip(found[1], found[0], strict=True):
        # Gradients of parts are summed in fp32.
        torch.testing.assert_close(here, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_product_with_its_parts_in_one_node_equals_plain_in_value_and_in_every_gradient(has_bias):
    found = []
    for is_one_node in (False, True):
        _, x, parts = matrices(requires_grad=True)
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        bias = torch.randn(7, generator=generator, dtype=torch.float64) if has_bias else None
        if is_one_node:
            out = grouped.product(x, lambda weight=weight: weight, bias, parts, SPANS)
        else:
            out = plain.add_low_rank(torch.nn.functional.linear(x, weight, bias), x, parts, SPANS)
        weights = torch.arange(out.numel(), dtype=torch.float64).view_as(out).sin()
        leaves = [x, *(t for p in parts if p is not None for t in (p.a, p.b))]
        found.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for here, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(here, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[1][1], torch.zeros(13, 5, dtype=torch.float64))


def test_a_part_that_no_token_wears_has_a_gradient_of_zeros():
    _, x, parts = matrices(requires_grad=True)
    out = grouped.product(x, lambda: torch.ones(7, 5, dtype=torch.float64), None, parts, SPANS[:1])
    idle, worn = torch.autograd.grad(out.sum(), [parts[2].a, parts[0].a])
    assert not idle.any()
    assert worn.any()


@pytest.mark.parametrize("has_bias", [True, False])
def test_grouped_rescaling_equals_plain_in_value_and_in_every_gradient(has_bias):
    found = []
    for rescale in (plain.rescale, grouped.rescale):
        generator = torch.Generator().manual_seed(0)
        y, bias, *gains = (
            torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
            for shape in ((13, 7), (7,), (7,), (7,))
        )
        spans = SPANS[:3]
        out = rescale(y, bias if has_bias else None, spans, [gains[0], None, gains[1]])
        leaves = [y, *gains]
        found.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
        with torch.no_grad():
            found[-1].append(rescale(y.clone(), bias if has_bias else None, spans, [gains[0], None, gains[1]]))
    for here, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(here, expected)
    assert torch.equal(found[1][0][4:8], y[4:8])
    assert not torch.allclose(found[1][0][1:4], y[1:4])


def test_a_gain_of_one_changes_no_bit():
    y, bias = torch.randn(13, 7).bfloat16(), torch.randn(7)
    assert torch.equal(grouped.rescale(y, bias, SPANS[:1], [torch.ones(7)]), y)


def test_masters_in_fp32_get_fp32_gradients_from_a_bf16_forward():
    y, x, _ = matrices(dtype=torch.bfloat16)
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    out = grouped.add_low_rank(y, x, [Part(a, b, 1.0)], [Span(0, 13, 0)])
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32


def low_rank(ranks: dict[str, int], seed: int, scale: float = 1.0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        {site: torch.randn(r, 5, generator=generator) for site, r in ranks.items()},
        {site: torch.randn(7, r, generator=generator) for site, r in ranks.items()},
        dict.fromkeys(ranks, scale),
    )


def pooled(pool: RankPool, effects, site: str, y, x):
    """Y of one token for each of these effects."""
    pool.hold([e for e in effects if e is not None])
    stack = pool.site(site)
    return y if stack is None else grouped.add_masked(y.clone(), x, *stack, pool.mask(effects))


def paged(pool: RankPool, effects, site: str, y, x):
    """As pooled, page by page."""
    pool.hold([e for e in effects if e is not None])
    stack = pool.site(site)
    return y if stack is None else grouped.add_paged(y.clone(), x, *stack, pool.paging(effects))


def unpooled(effects, site: str, y, x):
    parts = [None if e is None or site not in e.a else Part(e.a[site], e.b[site], e.scale[site]) for e in effects]
    return plain.add_low_rank(y, x, parts, [Span(n, n + 1, n) for n in range(len(effects))])


@pytest.fixture
def pool() -> RankPool:
    return RankPool(device=torch.device("cpu"), dtype=torch.float32)


def test_the_pool_equals_plain_while_adapters_come_and_go(pool):
    effects = [
        low_rank({"q": 4, "v": 2}, 1),
        low_rank({"q": 8}, 2, scale=0.5),
        low_rank({"v": 16}, 3),
        low_rank({"q": 40, "v": 1}, 4, scale=3.0),
        None,
    ]
    generator = torch.Generator().manual_seed(9)
    for turn in range(40):
        worn = [effects[int(i)] for i in torch.randint(0, 5, (1 + turn % 6,), generator=generator)]
        y, x = torch.randn(len(worn), 7, generator=generator), torch.randn(len(worn), 5, generator=generator)
        if not any(worn):
            continue
        for site in ("q", "v"):
            torch.testing.assert_close(pooled(pool, worn, site, y, x), unpooled(worn, site, y, x))
            torch.testing.assert_close(paged(pool, worn, site, y, x), unpooled(worn, site, y, x))


def test_pages_that_no_token_owns_say_nothing_and_rows_without_an_adapter_stay_bit_for_bit(pool):
    effects = [low_rank({"q": 3}, 1), low_rank({"q": 6}, 2), low_rank({"q": 2}, 3)]
    pool.hold(effects)
    worn = [None, effects[1], effects[1], None, effects[0]]  # the third is in the pool, and not in this batch
    y, x = torch.randn(5, 7), torch.randn(5, 5)
    here = paged(pool, worn, "q", y, x)
    torch.testing.assert_close(here, unpooled(worn, "q", y, x))
    assert torch.equal(here[3], y[3])
    all_live = replace(pool.paging(worn), live=None)
    assert not torch.allclose(grouped.add_paged(y.clone(), x, *pool.site("q"), all_live), here)


@pytest.mark.parametrize(("tokens", "kind"), [(8, Paging), (2, torch.Tensor)])
def test_tokens_go_page_by_page_where_few_share_an_adapter(pool, tokens, kind):
    effects = [low_rank({"q": 4}, seed) for seed in range(tokens // 2)]
    pool.hold(effects)
    worn = [effect for effect in effects for _ in range(2)]
    assert isinstance(_short(pool, worn), kind)


def test_a_step_with_the_adapters_of_the_last_moves_no_bytes(pool):
    effects = [low_rank({"q": 4}, 1), low_rank({"q": 8}, 2)]
    pool.hold(effects)
    a, b = pool.site("q")
    before = a._version, b._version
    pool.hold(effects[::-1])
    pool.hold(effects[:1])
    assert pool.site("q")[0] is a
    assert (a._version, b._version) == before
    pool.hold([low_rank({"q": 4}, 3)])
    assert a._version > before[0]


def test_the_pool_shrinks_when_few_are_left_and_keeps_no_adapter_alive(pool):
    many = [low_rank({"q": 16}, seed) for seed in range(8)]
    pool.hold(many)
    assert pool.size == 128
    one = many[3]
    pool.hold([one])
    assert pool.size == 16
    del many
    gc.collect()
    assert len(pool._rows) == 1


def test_a_wide_pool_multiplies_in_the_models_type_and_a_narrow_one_in_fp32():
    pool = RankPool(device=torch.device("cpu"), dtype=torch.bfloat16)
    pool.hold([low_rank({"q": NARROW}, 1)])
    assert pool.site("q")[0].dtype == torch.float32
    effects = [low_rank({"q": NARROW}, 1), low_rank({"q": 1}, 2), None]
    y, x = torch.randn(3, 7).bfloat16(), torch.randn(3, 5).bfloat16()
    here = pooled(pool, effects, "q", y, x)
    assert pool.site("q")[0].dtype == here.dtype == torch.bfloat16
    torch.testing.assert_close(here.float(), unpooled(effects, "q", y.float(), x.float()), atol=0.3, rtol=0.03)
    assert torch.equal(here[2], y[2])


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_packed_product_equals_the_plain_one_for_any_number_of_tokens(has_bias):
    weight, bias = torch.randn(70, 50), torch.randn(70) if has_bias else None
    packed, other = pack(weight), pack(weight + 1)
    for tokens in (1, 2, 7, 16, 33, 64):
        x = torch.randn(1, tokens, 50)
        plain_product = torch.nn.functional.linear(x, weight, bias)
        with torch.inference_mode():
            torch.testing.assert_close(packed_product(x, packed, bias), plain_product, atol=1e-4, rtol=1e-5)
            assert not torch.allclose(packed_product(x, other, bias), plain_product, atol=1e-2)


def test_only_fp32_on_a_cpu_is_packed():
    assert is_packable(torch.zeros(2, 2)) == torch.backends.mkldnn.is_available()
    assert not is_packable(torch.zeros(2, 2, dtype=torch.bfloat16))
    assert not is_packable(torch.zeros(2, 2, device="meta"))
