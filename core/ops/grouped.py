"""The arithmetic of core/ops/plain.py, fast: grouped by adapter for long rows, all adapters at once for short ones.

No token is gathered or copied for its adapter's sake. Measured on 2 cores in bf16: two thin products per span cost a
tenth of the frozen product beside them, where casting the input up to fp32 and adding in a second pass cost up to
twice of it. For rows of one token even that is many tiny products, so there every adapter of the batch multiplies
every token, and a mask keeps each token's own: the bytes of the adapters are read once, which is what a decode step
is made of. On a CPU whose products are no faster than its memory that is much arithmetic for nothing, and the pages
of the pool are multiplied one by one, each with the few tokens that own it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.ops.plain import Part, Span
from core.ops.pool import Paging
from core.ops.segments import PAGE


def add_low_rank(y: Tensor, x: Tensor, parts: Sequence[Part | None], spans: Sequence[Span]) -> Tensor:
    """Semantics: those of plain.add_low_rank. Spans must come in order. Differentiable in y, x and every part.

    Without gradients y itself is written to and returned.
    """
    here = [span for span in spans if parts[span.slot] is not None]
    if not here:
        return y
    if torch.is_grad_enabled():
        summed: Tensor = _AddLowRank.apply(y, x, *_told(parts, here))  # type: ignore[no-untyped-call]
        return summed
    for start, stop, slot in here:
        part = parts[slot]
        assert part is not None
        u = x[start:stop] @ part.a.to(x.dtype).T  # [n, R]
        y[start:stop].addmm_(u, part.b.to(x.dtype).T, alpha=part.scale)
    return y


def product(
    x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None, parts: Sequence[Part | None], spans: Sequence[Span]
) -> Tensor:
    """A frozen product and every token's low-rank part in one node, which keeps x once and adds up in place.

    Semantics: those of plain.add_low_rank of x Wᵀ + bias. Spans must come in order. Differentiable in x and every part.

    Args:
        x: [N, I].
        weight: gives W [O, I]; asked again in backward, so that a weight in 4 bits is not kept in more.
        bias: [O], or None.
        parts: S of them, one for each slot.
        spans: of tokens, apart from one another.

    """
    y: Tensor = _Product.apply(x, weight, bias, *_told(parts, spans))  # type: ignore[no-untyped-call]
    return y


def add_masked(y: Tensor, x: Tensor, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Every token through the low-rank rows that its mask names; y is written to and returned. Without gradients.

    Semantics:
        for n in range(N):
            for r in range(R):
                y[n] += mask[n, r] * (x[n] @ a[r]) * b[r]

    Args:
        y: [N, O].
        x: [N, I].
        a: [R, I], the rows of all adapters under one another.
        b: [R, O], likewise, scales already in it.
        mask: [N, R] of ones and zeros, in the type of a and b. If that is finer than y's, y is rounded once.

    """
    thin = (x.to(a.dtype) @ a.T).mul_(mask)  # [N, R]
    return y.addmm_(thin, b) if y.dtype == b.dtype else y.add_(thin @ b)


def add_paged(y: Tensor, x: Tensor, a: Tensor, b: Tensor, paging: Paging) -> Tensor:
    """As add_masked, page by page of a and b: y is written to and returned. Without gradients.

    Semantics:
        for p in range(R // PAGE):
            for c in range(C):
                n = tokens[p * C + c]
                for r in range(p * PAGE, (p + 1) * PAGE):
                    y[n] += live[p, c] * (x[n] @ a[r]) * b[r]

    16 tokens of 16 adapters of ranks 8 to 16 on every layer of SmolLM2-135M, one thread, fp32: 31 ms a step against
    49 of add_masked, where reading a and b takes 15.

    Args:
        y: [N, O].
        x: [N, I].
        a: [R, I].
        b: [R, O].
        paging: whose tokens each page multiplies.

    """
    taken = x.index_select(0, paging.tokens).view(-1, paging.width, x.shape[1])  # [P, C, I]
    thin = torch.bmm(taken, a.view(-1, PAGE, a.shape[1]).transpose(1, 2))  # [P, C, PAGE]
    if paging.live is not None:
        thin.mul_(paging.live)
    added = torch.bmm(thin, b.view(-1, PAGE, b.shape[1]))  # [P, C, O]
    return y.index_add_(0, paging.tokens, added.view(-1, y.shape[1]))


def rescale(y: Tensor, bias: Tensor | None, spans: Sequence[Span], gains: Sequence[Tensor | None]) -> Tensor:
    """Semantics: those of plain.rescale. Spans must come in order. Differentiable in y and every gain.

    Without gradients y itself is written to and returned.
    """
    pieces, filled = [], 0
    for (start, stop, _), gain in zip(spans, gains, strict=True):
        if gain is None:
            continue
        here = y[start:stop].to(torch.promote_types(y.dtype, gain.dtype))
        free = here if bias is None else here - bias
        # A gain of 1 leaves y as it is, bit for bit: so an untrained adapter changes nothing.
        scaled = torch.addcmul(here, gain - 1, free).to(y.dtype)
        if torch.is_grad_enabled():
            pieces += [y[filled:start], scaled]
            filled = stop
        else:
            y[start:stop] = scaled
    return torch.cat([*pieces, y[filled:]]) if pieces else y


def _told(parts: Sequence[Part | None], spans: Sequence[Span]) -> tuple[Any, ...]:
    """Spans that a part is for, S scales, then a and b of each slot, as autograd takes them: flat."""
    flat = (t for part in parts for t in ((None, None) if part is None else (part.a, part.b)))
    scales = [0.0 if part is None else part.scale for part in parts]
    return [span for span in spans if parts[span.slot] is not None], scales, *flat


class _AddLowRank(torch.autograd.Function):
    """One node for all adapters of one layer. The frozen weight gets no gradient; x is kept once, for every part."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's own context has no public type
        y: Tensor,
        x: Tensor,
        spans: list[Span],
        scales: list[float],
        *flat: Tensor | None,
    ) -> Tensor:
        out = y.clone()
        _keep(ctx, x, _add(out, x, spans, scales, flat), spans, scales, flat)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        kept = _Kept(ctx)
        grads, thin_grads = kept.backward(dy, ctx.needs_input_grad[4:])
        dx = kept.into_x(torch.zeros_like(kept.x), thin_grads) if ctx.needs_input_grad[1] else None
        return dy, dx, None, None, *grads


class _Product(torch.autograd.Function):
    """As _AddLowRank, the frozen product among it."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd gives all by place
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Callable[[], Tensor],
        bias: Tensor | None,
        spans: list[Span],
        scales: list[float],
        *flat: Tensor | None,
    ) -> Tensor:
        y = torch.nn.functional.linear(x, weight(), bias)
        _keep(ctx, x, _add(y, x, spans, scales, flat), spans, scales, flat)
        ctx.weight = weight
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        kept = _Kept(ctx)
        grads, thin_grads = kept.backward(dy, ctx.needs_input_grad[5:])
        dx = kept.into_x(dy @ ctx.weight(), thin_grads) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, *grads


Flat = Sequence[Tensor | None]  # a and b of slot 0, of slot 1, …; None and None of a slot without a part


def _add(
    y: Tensor, x: Tensor, spans: Sequence[Span], scales: Sequence[float], flat: Flat
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Writes to y. Returns flat in the type of x, and x Aᵀ of each span: [n, R]."""
    low = [None if t is None else t.to(x.dtype) for t in flat]
    thin = []
    for start, stop, slot in spans:
        a, b = _pair(low, slot)
        thin.append(x[start:stop] @ a.T)
        y[start:stop].addmm_(thin[-1], b.T, alpha=scales[slot])
    return low, thin


def _keep(  # noqa: PLR0917 - what one node keeps
    ctx: Any,  # noqa: ANN401
    x: Tensor,
    made: tuple[list[Tensor | None], list[Tensor]],
    spans: list[Span],
    scales: list[float],
    flat: Flat,
) -> None:
    low, thin = made
    ctx.save_for_backward(x, *low, *thin)
    ctx.spans, ctx.scales, ctx.kinds = spans, scales, [None if t is None else t.dtype for t in flat]


class _Kept:
    """What a node kept, read once: a tensor that is reckoned again when it is asked for is asked for once."""

    def __init__(self, ctx: Any) -> None:  # noqa: ANN401
        self.x, *kept = ctx.saved_tensors
        self.spans, self.scales, self.kinds = ctx.spans, ctx.scales, ctx.kinds
        self.low, self.thin = kept[: len(self.kinds)], kept[len(self.kinds) :]

    def backward(self, dy: Tensor, wanted: Sequence[bool]) -> tuple[Flat, list[Tensor]]:
        """The gradients of flat, and that of x Aᵀ of each span: [n, R]."""
        worn = {span.slot for span in self.spans}
        grads: list[Tensor | None] = [
            torch.zeros_like(t, dtype=torch.float32) if is_wanted and place // 2 not in worn else None
            for place, (t, is_wanted) in enumerate(zip(self.low, wanted, strict=True))
        ]
        thin_grads = []
        for (start, stop, slot), u in zip(self.spans, self.thin, strict=True):
            here, scale = dy[start:stop], self.scales[slot]
            thin_grads.append((here @ self.low[2 * slot + 1]).mul_(scale))
            if wanted[2 * slot]:
                _sum_up(grads, 2 * slot, thin_grads[-1].T @ self.x[start:stop])
            if wanted[2 * slot + 1]:
                _sum_up(grads, 2 * slot + 1, (u.T @ here).mul_(scale).T)
        return [None if g is None else g.to(kind) for g, kind in zip(grads, self.kinds, strict=True)], thin_grads

    def into_x(self, dx: Tensor, thin_grads: Sequence[Tensor]) -> Tensor:
        """Adds to dx [N, I] what the low-rank parts say, and returns it."""
        for (start, stop, slot), du in zip(self.spans, thin_grads, strict=True):
            dx[start:stop].addmm_(du, self.low[2 * slot])
        return dx


def _sum_up(grads: list[Tensor | None], place: int, grad: Tensor) -> None:
    """Spans of one adapter add up in fp32, so that rounding does not grow with their number."""
    so_far = grads[place]
    grads[place] = grad.float() if so_far is None else so_far.add_(grad)


def _pair(low: Flat, slot: int) -> tuple[Tensor, Tensor]:
    a, b = low[2 * slot], low[2 * slot + 1]
    assert a is not None
    assert b is not None
    return a, b
