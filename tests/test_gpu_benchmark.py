"""The parts of benchmarks/gpu.py that need no GPU to be right: many adapters, stock PEFT, the line that sums up."""

import json
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import gpu, gpu_many, gpu_peer
from core.model import RoutedModel
from worker.engine.engine import Engine

SIZES = gpu_many.Sizes(registered=24, on_device=4, rank=2, rows=4, requests=20, prompt=9, new=3)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
}


@pytest.fixture(scope="module")
def many(new_base_of_module):
    return gpu_many.many(RoutedModel(new_base_of_module()), SIZES)


@pytest.fixture(scope="module")
def new_base_of_module():
    torch.manual_seed(0)
    return lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=64))


def test_every_arm_of_many_adapters_loads_what_it_must_and_says_all_its_tokens(many):
    by_name = {row["arm"]: row for row in many}
    assert [row["arm"] for row in many] == [arm.name for arm in gpu_many.arms_of(SIZES)]
    assert all(row["tokens_per_s"] > 0 and row["between_p99_ms"] >= row["between_p50_ms"] > 0 for row in many)
    # Once warm, what fits is never loaded again; of what does not fit, a part is found and a part is loaded.
    assert by_name["base"]["loads"] == by_name["as many as fit"]["loads"] == 0
    for name in ("registered, Zipf", "registered, even", "registered, Zipf, no queue"):
        assert 0 < by_name[name]["hit_rate"] < 1
        assert by_name[name]["copied_gb_per_s"] > 0
    assert by_name["registered, Zipf"]["loads"] < by_name["registered, even"]["loads"]


def test_a_popular_adapter_is_drawn_by_zipf_and_none_by_the_base():
    arms = {arm.name: arm for arm in gpu_many.arms_of(SIZES)}
    wide = gpu_many.Sizes(registered=50, requests=40_000)
    zipf = gpu_many.drawn(gpu_many.Arm("", 50, 1.0), wide, seed=1)
    even = gpu_many.drawn(gpu_many.Arm("", 50), wide, seed=1)
    assert zipf.count(0) / zipf.count(9) == pytest.approx(10, rel=0.4)
    assert even.count(0) / even.count(9) == pytest.approx(1, rel=0.4)
    assert set(gpu_many.drawn(arms["base"], wide, seed=1)) == {None}


def test_a_registered_adapter_says_something_of_its_own(new_base_of_module):
    model = RoutedModel(new_base_of_module())
    registry = gpu_many.Registry(model, SIZES)
    first, second = (registry(f"{n + 1:064x}") for n in (0, 1))
    assert registry.size_bytes == sum(t.numel() * 4 for t in (*first.a.values(), *first.b.values()))
    assert {name.rpartition(".")[2] for name in first.a} == {"q_proj", "v_proj"}
    assert any(not torch.equal(first.a[name], second.a[name]) for name in first.a)


def test_a_row_that_fails_fails_the_benchmark(new_base_of_module):
    model = RoutedModel(new_base_of_module())

    def broken(_digest):
        raise OSError("the store is away")

    engine = Engine(model, broken, rows=4, context=32, adapter_memory_bytes=1 << 20, max_waiting=20)
    with pytest.raises(RuntimeError, match="rows failed"):
        gpu_many.served(engine, [1, None], SIZES, is_queued=True)


def test_stock_peft_decodes_every_row_in_its_own_adapter():
    how = {"device": "cpu", "dtype": torch.float32, "adapters": 3, "rank": 4, "length": 64}
    plain = gpu_peer.opened(SHAPE, (), **how)
    worn = gpu_peer.opened(SHAPE, gpu_peer.EVERY, **how)
    with torch.no_grad():
        for name, parameter in worn.named_parameters():
            if "lora_" in name:
                parameter.mul_(20)  # so that tokens tell adapters apart
    ms, bare = gpu_peer.decoded(plain, 3, 9, 6, is_bare=True)
    _, told = gpu_peer.decoded(worn, 3, 9, 6, is_bare=False)
    assert ms > 0
    assert [len(row) for row in told] == [8] * 3
    ids = torch.tensor([[5 + (7 * row + t) % 90 for t in range(9)] for row in range(3)])
    for row in range(3):
        worn.set_adapter(f"a{row}")
        with torch.no_grad():
            assert told[row][0] == int(worn(input_ids=ids[row : row + 1]).logits[0, -1].argmax())
    assert told != bare


def test_stock_peft_has_a_row_for_the_base_and_each_plan():
    found = gpu_peer.peer(SHAPE, device="cpu", dtype=torch.float32, rows=2, rank=2, context=8, steps=3)
    assert [row["worn"] for row in found] == ["base", "lora", "lora q and v"]
    assert all(row["tokens_per_s"] == pytest.approx(2000 / row["peft_ms"]) for row in found)


def test_the_bound_is_of_weights_and_distinct_adapters(new_base_of_module):
    model = RoutedModel(new_base_of_module())
    registry = gpu_many.Registry(model, SIZES)
    first, second = (registry(f"{n + 1:064x}") for n in (0, 1))
    linear = sum(i * o for i, o in (site.widths for site in model.sites.values()))
    weights = 2 * linear + 4 * 99 * 32
    assert gpu.bound(model, [None, None], "bf16") == 1
    assert gpu.bound(model, [first, first, None], "bf16") == pytest.approx(weights / (weights + registry.size_bytes))
    assert gpu.bound(model, [first, second], "bf16") == pytest.approx(weights / (weights + 2 * registry.size_bytes))


def test_the_line_that_sums_up_divides_what_was_measured(many):
    step, gaps = {"precision": "bf16", "rows": 64}, {"between_p50_ms": 2.0, "between_p99_ms": 3.0}
    found = {
        "steps": [
            step | {"worn": "base", "tokens_per_s": 100.0, "bound": 1.0},
            step | {"worn": "lora", "tokens_per_s": 70.0, "bound": 0.75},
        ],
        "peft": [{"worn": "lora", "tokens_per_s": 2.0}],
        "many": [
            {"arm": "as many as fit", "adapters": 64, "tokens_per_s": 50.0},
            {"arm": "registered, Zipf", "adapters": 2000, "tokens_per_s": 48.0} | gaps,
        ],
    }
    told = gpu.metric(found)
    assert told == pytest.approx(
        {
            "ratio_base": 0.7,
            "bound": 0.75,
            "ratio_over_bound": 0.7 / 0.75,
            "ratio_peft": 35.0,
            "flatness_2000": 0.96,
            "itl_p99_over_p50_cold": 1.5,
        }
    )
    assert json.loads(json.dumps(told)) == told
    assert gpu.metric(found | {"many": many})["flatness_24"] > 0


def test_sizes_are_options(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--registered", "300", "--on-device", "20", "--peft-steps", "4"])
    options = gpu.arguments()
    assert gpu.sizes_of(options) == gpu_many.Sizes(registered=300, on_device=20)
    assert options.peft_steps == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, and this is about where there is none")
def test_without_a_device_nothing_is_measured_and_nothing_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    assert gpu.main() == 2
    assert "nothing was measured" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()
