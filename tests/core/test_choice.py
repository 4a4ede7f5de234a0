"""Which form of an operation serves is decided in one place."""

import importlib
from pathlib import Path

import pytest
import torch

from core.ops import choice
from core.ops.pool import RankPool


@pytest.mark.parametrize(
    ("device", "triton", "gradients", "serves"),
    [
        ("cuda", True, False, True),
        ("cuda", False, False, False),
        ("cuda", True, True, False),
        ("cpu", True, False, False),
    ],
)
def test_kernels_serve_on_cuda_with_triton_and_without_gradients(device, triton, gradients, serves, monkeypatch):
    monkeypatch.setattr(choice, "has_triton", lambda: triton)
    monkeypatch.setattr(choice, "_imported", lambda: "kernels")
    with torch.set_grad_enabled(gradients):
        assert (choice.kernels_for(torch.device(device)) == "kernels") is serves


def test_nothing_else_imports_a_kernel():
    room = Path(choice.__file__).parents[2]
    for path in [*room.glob("core/**/*.py"), *room.glob("worker/**/*.py")]:
        if path.name.startswith("triton_") or path.name == "choice.py":
            continue
        assert "triton_" not in "".join(
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.lstrip().startswith(("import", "from"))
        ), path


def test_the_choice_imports_no_triton_where_none_is_asked_for():
    module = importlib.reload(choice)
    with torch.no_grad():
        assert module.kernels_for(torch.device("cpu")) is None
    assert module._imported.cache_info().currsize == 0


def test_a_pool_for_kernels_keeps_adapters_until_it_needs_their_room_and_grows_by_doubling(new_facts, new_effects):
    made = new_effects(new_facts())
    first, second = made["rank 4"], made["rank 7, few sites"]
    pool = RankPool(device=torch.device("cpu"), dtype=torch.float32, is_for_kernels=True)
    pool.hold([first])
    assert pool.size == 64
    moves = pool.moves
    pool.hold([second])
    assert first in pool
    assert second in pool
    assert pool.moves == moves
    pool.hold([made["rank 2, rslora"], first])
    assert pool.moves == moves
    plain = RankPool(device=torch.device("cpu"), dtype=torch.float32)
    plain.hold([first])
    plain.hold([second])
    assert first not in plain
