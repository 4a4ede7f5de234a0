"""Of benchmarks/gpu.py: decode steps of stock transformers and PEFT, of the shape and the rows that ours have.

One `generate` of rows of as many tokens as ours have in their caches. Adapters come by `adapter_names`, the one legal
way in which PEFT puts several into a batch; each row names another. The first step, which reads the prompts, and the
second, which warms up, are not counted. Knows nothing of Graft.
"""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

Found = dict[str, Any]
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLANS = {"base": (), "lora": EVERY, "lora q and v": ("q_proj", "v_proj")}


class Clock(StoppingCriteria):
    """Stops nothing: notes when each token of a batch was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:  # noqa: ARG002
        """Called by `generate` after every token."""
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def peer(
    shape: dict[str, Any], *, device: str, dtype: torch.dtype, rows: int, rank: int, context: int, steps: int
) -> list[Found]:
    """A row for every plan: milliseconds of a step, tokens a second."""
    found: list[Found] = []
    for name, sites in PLANS.items():
        model = opened(shape, sites, device=device, dtype=dtype, adapters=rows, rank=rank, length=context + steps + 2)
        ms = decoded(model, rows, context, steps, is_bare=not sites)[0]
        found.append({"worn": name, "rows": rows, "rank": rank, "peft_ms": ms, "tokens_per_s": 1000 * rows / ms})
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


def opened(
    shape: dict[str, Any],
    sites: tuple[str, ...],
    *,
    device: str,
    dtype: torch.dtype,
    adapters: int,
    rank: int,
    length: int,
) -> Any:  # noqa: ANN401 - both are untyped
    """Random weights, made on the device, and so many random adapters named a0, a1, … on these sites."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=length))
            model.generation_config.eos_token_id = None
            if sites:
                # Not trained, and not at rest either: both factors are drawn.
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(sites), init_lora_weights=False)
                model = get_peft_model(model, config, adapter_name="a0", autocast_adapter_dtype=False)
                for number in range(1, adapters):
                    model.add_adapter(f"a{number}", config, autocast_adapter_dtype=False)
    finally:
        torch.set_default_dtype(torch.float32)
    model.train(mode=False)
    return model


def decoded(model: Any, rows: int, context: int, steps: int, *, is_bare: bool) -> tuple[float, list[list[int]]]:  # noqa: ANN401
    """The median milliseconds of a step, and what each row said."""
    clock, device = Clock(), next(model.parameters()).device
    ids = torch.tensor([[5 + (7 * row + t) % 90 for t in range(context)] for row in range(rows)], device=device)
    told = {} if is_bare else {"adapter_names": [f"a{row}" for row in range(rows)]}
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps + 2,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
            **told,
        )
    gaps = [1000 * (later - sooner) for sooner, later in pairwise(clock.times)]
    return statistics.median(gaps[1:]), out[:, context:].tolist()
