"""Small frozen parts of a layer with a backward of their own: they keep less for it than autograd would.

Autograd keeps the operands of every elementary step; here a part keeps its input alone, and reckons again what follows
from that. The forwards do what the models' own code does, step by step, so that no bit of an output changes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Each token divided by its root mean square, in fp32. Differentiable in x; weight is frozen.

    Semantics:
        for n in range(N):
            y[n] = weight * (x[n] / (mean(x[n] ** 2) + epsilon) ** 0.5)

    Args:
        x: [..., H].
        weight: [H].
        epsilon: added to the mean square.

    """
    if not torch.is_grad_enabled():
        return _normed(x, weight, _inverse(x, epsilon))
    y: Tensor = _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return y


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: what stands between the layers of a SwiGLU block. Differentiable in both.

    Semantics:
        for n in range(N):
            for i in range(I):
                y[n, i] = gate[n, i] / (1 + exp(-gate[n, i])) * up[n, i]

    """
    if not torch.is_grad_enabled():
        return silu(gate) * up
    y: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return y


def _inverse(x: Tensor, epsilon: float) -> Tensor:
    """One over the root mean square of each token: [..., 1] in fp32."""
    return torch.rsqrt(_fine(x).pow(2).mean(-1, keepdim=True) + epsilon)


def _normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    return weight * (_fine(x) * inverse).to(x.dtype)


def _fine(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _RMSNorm(torch.autograd.Function):
    """Keeps x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # noqa: ANN401 - torch's own
        inverse = _inverse(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return _normed(x, weight, inverse)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's own
        x, weight, inverse = ctx.saved_tensors
        unit = _fine(x) * inverse
        slope = _fine(dy * weight)
        along = (slope * unit).mean(-1, keepdim=True)
        return unit.mul_(along).sub_(slope).mul_(-inverse).to(x.dtype), None, None


class _Gated(torch.autograd.Function):
    """Keeps gate and up, not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch's own
        gate, up = ctx.saved_tensors
        d_up = silu(gate).mul_(dy)
        return torch.ops.aten.silu_backward(dy * up, gate), d_up
