"""What CPU laws foretell, on a CUDA device: the kernels as they are compiled, and steps that the device repeats."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.base.nf4 import quantise_linears
from core.cache import KVCache
from core.decode import StillStep
from core.model import RoutedModel, Rows
from core.ops import choice
from core.packed_model import pack_model
from core.routing import Routing
from worker.engine.still import still_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device, so nothing of this was run"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("laws", ["low_rank_laws.py", "decode_laws.py", "nf4_laws.py"])
def test_a_kernel_equals_its_plain_operation_on_the_device(laws):
    assert choice.has_triton(), "this build of torch brought no Triton: install the one that it names"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/core/kernels/{laws}"]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def decoded(model, effects, steps, *, still=None):
    """Hidden states after each of these steps, of rows that have read two tokens."""
    cache, found = KVCache.for_model(model, 6, 64), []
    slots = [cache.take() for _ in effects]
    for slot, effect in zip(slots, effects, strict=True):
        if hasattr(effect, "keys"):
            cache.put_prefix(slot, effect)
    repeats = still(model, cache) if still else None
    for step in range(steps):
        ids = (
            [[(5 + step + n) % 90] for n in range(len(effects))] if step else [[3, 4 + n] for n in range(len(effects))]
        )
        if step and repeats is not None:
            with torch.inference_mode():
                found.append(repeats.run([i for (i,) in ids], slots, effects).float().cpu().clone())
            continue
        firsts = [cache.lengths[slot] for slot in slots]
        rows = Rows.of(ids, first_positions=firsts, slots=slots, device=model.device)
        with torch.inference_mode(), model.wearing(Routing.of_rows(effects)):
            found.append(model(rows, cache).float().cpu())
    if repeats is not None:
        assert repeats.graphs.recorded
    return found


@pytest.mark.parametrize("is_nf4", [False, True])
def test_steps_on_record_say_on_the_device_what_the_one_forward_says_on_a_cpu(is_nf4, new_base, new_facts, new_effects):
    made, found = new_effects(new_facts()), []
    for device in ("cpu", "cuda"):
        base = new_base().to(device)
        if is_nf4:
            head = base.get_output_embeddings()
            quantise_linears(base, head=head, device=torch.device(device), dtype=torch.float32)
        model = RoutedModel(base)
        if device == "cuda":
            pack_model(model)
        worn = [e and model.resident(e) for e in (made["rank 4"], None, made["prefix"], made["rank 7, few sites"])]
        found.append(decoded(model, worn, 6, still=still_steps if device == "cuda" else None))
    for here, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(here, expected, atol=1e-4, rtol=1e-3)


def test_a_step_on_record_reads_who_wears_what_anew(new_base, new_facts, new_effects):
    made, model = new_effects(new_facts()), RoutedModel(new_base().to("cuda"))
    first, second = (model.resident(made[name]) for name in ("rank 4", "rank 2, rslora"))
    cache = KVCache.for_model(model, 2, 16)
    slots = [cache.take(), cache.take()]
    steps = still_steps(model, cache)
    with torch.inference_mode():
        for worn in ([first, second], [first, second], [second, first]):
            here = steps.run([7, 8], slots, worn).clone()
        step = StillStep(model, cache, 2, is_bare=False)
        for slot in slots:
            cache.lengths[slot] -= 1
        step.fill([7, 8], slots, [second, first])
        torch.testing.assert_close(here, step.run(), atol=1e-4, rtol=1e-3)
    assert steps.graphs.recorded == 1
