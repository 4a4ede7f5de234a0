"""Of benchmarks/gpu.py: every kernel beside the forms it stands for. Times are of CUDA events."""

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.effects import LowRank
from core.ops import choice, grouped, nf4
from core.ops.choice import Kernels
from core.ops.pool import RankPool

Found = dict[str, Any]
WIDE = 4096  # inputs and outputs of the layer of the sweep: Llama-3.1-8B's
FLUSH_BYTES = 256 << 20  # more than an H200's second-level cache


def timed_us(run: Callable[[], object], rounds: int = 20) -> float:
    """The median time of one run on the device, what it reads flushed out of its cache before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(3):
        run()
    times: list[float] = []
    for _ in range(rounds):
        flush.zero_()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        run()
        ended.record()
        torch.cuda.synchronize()
        times.append(1000 * began.elapsed_time(ended))
    return statistics.median(times)


def constants() -> Found:
    """What the bounds are made of: bytes copied in a second, bf16 operations in a second."""
    source, target = (torch.empty(1 << 30, dtype=torch.int8, device="cuda") for _ in range(2))
    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    copy_us, product_us = timed_us(lambda: target.copy_(source)), timed_us(lambda: square @ square)
    return {"copied_gb_per_s": 2 * (1 << 30) / copy_us / 1e3, "bf16_tflop_per_s": 2 * 8192**3 / product_us / 1e6}


def low_rank(bytes_per_s: float) -> list[Found]:
    """One layer's low-rank parts: B rows of one token, by K adapters of rank r."""
    kernels, found = kernels_here(), []
    for rows, adapters, rank in itertools.product((1, 16, 64, 128, 256), (1, 8, 32, 64), (8, 16, 64)):
        if adapters <= rows:
            found.append(one_low_rank(kernels, rows, adapters, rank, bytes_per_s))
    return found


def one_low_rank(kernels: Kernels, rows: int, adapters: int, rank: int, bytes_per_s: float) -> Found:
    """The kernel, the masked pool, `grouped_mm` and gathered weights, each held against the plain sum."""
    a = torch.randn(adapters, rank, WIDE, device="cuda", dtype=torch.bfloat16) / WIDE**0.5
    b = torch.randn(adapters, rank, WIDE, device="cuda", dtype=torch.bfloat16)
    worn = torch.arange(rows, device="cuda") * adapters // rows  # neighbours wear one
    x, y = (torch.randn(rows, WIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    effects = [LowRank({"q": a[k]}, {"q": b[k].T}, {"q": 1.0}) for k in range(adapters)]
    by_kernel, by_mask = (
        RankPool(device=x.device, dtype=x.dtype, is_for_kernels=is_for_kernels) for is_for_kernels in (True, False)
    )
    for pool in (by_kernel, by_mask):
        pool.hold(effects)
    each = [effects[k] for k in worn.tolist()]
    group, stack = by_kernel.group("q"), by_mask.site("q")
    assert group is not None
    assert stack is not None
    segments, mask = by_kernel.segments(each), by_mask.mask(each)
    ends = torch.bincount(worn, minlength=adapters).cumsum(0).to(torch.int32)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "kernel": lambda y: kernels.add_segments(y, x, group, segments),
        "masked": lambda y: grouped.add_masked(y, x, *stack, mask),
        "grouped_mm": lambda y: y.add_(
            torch.nn.functional.grouped_mm(
                torch.nn.functional.grouped_mm(x, a.transpose(1, 2), offs=ends), b, offs=ends
            )
        ),
        "gathered": lambda y: y.add_(((x[:, None] @ a[worn].transpose(1, 2)) @ b[worn])[:, 0]),
    }
    exact = y.double() + ((x.double()[:, None] @ a[worn].double().transpose(1, 2)) @ b[worn].double())[:, 0]
    bound = 1e6 * 2 * (a.numel() + b.numel() + x.numel() + 2 * y.numel()) / bytes_per_s
    return {"rows": rows, "adapters": adapters, "rank": rank, "bound_us": bound} | {
        name: told(form, y, exact) for name, form in forms.items()
    }


def told(form: Callable[[Tensor], Tensor], y: Tensor, exact: Tensor) -> Found:
    """Its time, and how far it is from the exact sum at most; or why it did not run."""
    try:
        error = (form(y.clone()).double() - exact).abs().max()
        spare = y.clone()
        return {"us": timed_us(lambda: form(spare)), "error": float(error)}
    except RuntimeError as reason:
        return {"failed": str(reason).splitlines()[0]}


def decoding() -> list[Found]:
    """Attention of rows of one token over a cache: 32 heads on 8 of width 128, as Llama-3.1-8B's."""
    kernels, found = kernels_here(), []
    for rows, length in itertools.product((1, 16, 64), (256, 1024, 8192)):
        keys, values = (torch.randn(rows, 8, length, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        q = torch.randn(32, rows, 128, device="cuda", dtype=torch.bfloat16)
        slots, entries = torch.arange(rows, device="cuda"), torch.full((rows,), length - 1, device="cuda")
        how = {"reach": length, "scaling": 128**-0.5, "window": None, "softcap": None}
        mine = q.transpose(0, 1)[:, :, None]
        form = torch.nn.functional.scaled_dot_product_attention
        there = form(mine, keys, values, enable_gqa=True)[:, :, 0]
        here = kernels.attend(q, keys, values, slots, entries, **how)
        found.append({
            "rows": rows,
            "entries": length,
            "kernel_us": timed_us(lambda: kernels.attend(q, keys, values, slots, entries, **how)),  # noqa: B023
            "torch_us": timed_us(lambda: form(mine, keys, values, enable_gqa=True)),  # noqa: B023
            "difference": float((here - there).abs().max()),
        })  # fmt: skip
    return found


def four_bits() -> list[Found]:
    """A product with a weight in NF4: read in 4 bits, or dequantised first."""
    from core.base.nf4 import Linear4bit  # noqa: PLC0415 - bitsandbytes takes seconds

    kernels, found = kernels_here(), []
    layer = Linear4bit(torch.randn(WIDE, WIDE, device="cuda").bfloat16(), None, dtype=torch.bfloat16)
    parts = (layer.packed, layer.scales, layer.peaks, layer.offset, layer.levels, layer.scale_map)
    for tokens in (1, 8, 16, 32, nf4.FEW):
        x = torch.randn(tokens, WIDE, device="cuda", dtype=torch.bfloat16)
        here, there = kernels.nf4_product(x, parts, None, WIDE), x @ layer.dense().T
        found.append({
            "tokens": tokens,
            "kernel_us": timed_us(lambda: kernels.nf4_product(x, parts, None, WIDE)),  # noqa: B023
            "dequantised_us": timed_us(lambda: x @ layer.dense().T),  # noqa: B023
            "difference": float((here - there).abs().max()),
        })  # fmt: skip
    return found


def kernels_here() -> Kernels:
    """The kernels. Raises RuntimeError where none serve."""
    with torch.no_grad():
        kernels = choice.kernels_for(torch.device("cuda"))
    if kernels is None:
        raise RuntimeError("Triton is not installed, so there are no kernels to measure")
    return kernels
