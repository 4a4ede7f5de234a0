"""The arithmetic of core/ops/plain.py, fast: grouped by adapter for long rows, all adapters at once for short ones.

No token is gathered or copied for its adapter's sake. Measured on 2 cores in bf16: two thin products per span cost a
tenth of the frozen product beside them, where casting the input up to fp32 and adding in a second pass cost up to
twice of it. For rows of one token even that is many tiny products, so there every adapter of the batch multiplies
every token, and a mask keeps each token's own: the bytes of the adapters are read once, which is what a decode step
is made of.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.ops.plain import Part, Span


def add_low_rank(y: Tensor, x: Tensor, parts: Sequence[Part | None], spans: Sequence[Span]) -> Tensor:
    """Semantics: those of plain.add_low_rank. Spans must come in order. Differentiable in y, x and every part.

    Without gradients y itself is written to and returned.
    """
    here = [span for span in spans if parts[span.slot] is not None]
    if not here:
        return y
    if torch.is_grad_enabled():
        scales = [0.0 if part is None else part.scale for part in parts]
        flat = [t for part in parts for t in ((None, None) if part is None else (part.a, part.b))]
        summed: Tensor = _AddLowRank.apply(y, x, here, scales, *flat)  # type: ignore[no-untyped-call]
        return summed
    for start, stop, slot in here:
        part = parts[slot]
        assert part is not None
        u = x[start:stop] @ part.a.to(x.dtype).T  # [n, R]
        y[start:stop].addmm_(u, part.b.to(x.dtype).T, alpha=part.scale)
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
        out, filled = torch.empty_like(y), 0
        thin = []  # one [n, R] for each span
        low = [None if t is None else t.to(x.dtype) for t in flat]
        for start, stop, slot in spans:
            a, b = low[2 * slot], low[2 * slot + 1]
            assert a is not None
            assert b is not None
            out[filled:start] = y[filled:start]
            thin.append(x[start:stop] @ a.T)
            torch.addmm(y[start:stop], thin[-1], b.T, alpha=scales[slot], out=out[start:stop])
            filled = stop
        out[filled:] = y[filled:]
        ctx.save_for_backward(x, *low, *thin)
        ctx.spans, ctx.scales, ctx.kinds = spans, scales, [None if t is None else t.dtype for t in flat]
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        x, *kept = ctx.saved_tensors
        low, thin = kept[: len(ctx.kinds)], kept[len(ctx.kinds) :]
        dx, filled = torch.empty_like(x) if ctx.needs_input_grad[1] else None, 0
        # Spans of one adapter add up in fp32, so that rounding does not grow with their number.
        grads: list[Tensor | None] = [
            None if t is None or not ctx.needs_input_grad[4 + i] else torch.zeros_like(t, dtype=torch.float32)
            for i, t in enumerate(low)
        ]
        for (start, stop, slot), u in zip(ctx.spans, thin, strict=True):
            a, b = low[2 * slot], low[2 * slot + 1]
            dy_here, x_here = dy[start:stop], x[start:stop]
            du = (dy_here @ b).mul_(ctx.scales[slot])  # [n, R]
            da, db = grads[2 * slot], grads[2 * slot + 1]
            if da is not None:
                da += du.T @ x_here
            if db is not None:
                db += (dy_here.T @ u).mul_(ctx.scales[slot])
            if dx is not None:
                dx[filled:start] = 0
                torch.mm(du, a, out=dx[start:stop])
                filled = stop
        if dx is not None:
            dx[filled:] = 0
        cast = [None if g is None else g.to(kind) for g, kind in zip(grads, ctx.kinds, strict=True)]
        return dy, dx, None, None, *cast
