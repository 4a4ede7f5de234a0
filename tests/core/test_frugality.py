"""Checkpointing as it is foretold, and chosen: where memory asks for it, where it helps, and no further."""

import pytest
from test_estimate import AMOUNT, LARGEST, SMOL, spec_of

from core.estimate import KEPT, estimate, memory_of, parts
from core.frugality import frugal_enough
from core.measured_constants import CONSTANTS
from core.pace import operations
from core.specs.estimate import Device, Largest

CPU = CONSTANTS["cpu"]
AGAIN = {"activation_checkpointing": True}
AWAY = AGAIN | {"activation_offload": True}


def told(spec, amount=AMOUNT, kind="cpu"):
    return memory_of(SMOL, spec, amount, CONSTANTS[kind])


def turned(**changes):
    return spec_of().model_copy(update=changes)


@pytest.mark.parametrize("method", [{"type": "lora"}, {"type": "qlora"}], ids=["lora", "qlora"])
def test_with_checkpointing_there_are_the_layers_inputs_and_one_layer_of_the_rest(method):
    spec = spec_of(method)
    plain = sum(getattr(CPU, name) * parts(SMOL, spec, AMOUNT)[name] for name in KEPT)
    inputs = LARGEST.tokens * SMOL.layers * SMOL.hidden * SMOL.value_bytes
    again = told(spec.model_copy(update=AGAIN))
    assert again.activations == pytest.approx(inputs + plain / SMOL.layers, abs=1)
    away = told(spec.model_copy(update=AWAY))
    assert away.activations == pytest.approx((inputs + plain) / SMOL.layers, abs=1)
    without = told(spec)
    assert without.activations == pytest.approx(plain, abs=1)
    assert (again.base_weights, again.adapter, again.loss_head) == (
        without.base_weights,
        without.adapter,
        without.loss_head,
    )


def test_two_more_operations_for_each_weight_of_a_layer_and_none_for_the_head():
    plain, again = (operations(SMOL, spec, 10, 5) for spec in (spec_of(), turned(**AGAIN)))
    adapter = sum((site.width_in + site.width_out) * 16 for site in SMOL.sites)
    assert again - plain == 10 * 2 * (SMOL.linear_parameters + adapter)
    assert operations(SMOL, turned(**AGAIN), 0, 5) == operations(SMOL, spec_of(), 0, 5)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_run_keeps_as_much_as_its_device_allows_and_a_gpu_has_one_turn_more(kind):
    spec = spec_of()
    peaks = [told(one, kind=kind).total for one in (spec, turned(**AGAIN), turned(**AWAY))]
    assert peaks == sorted(peaks, reverse=True)

    def chosen(memory_bytes):
        found = frugal_enough(SMOL, spec, AMOUNT, Device(kind=kind, memory_bytes=memory_bytes))
        return found.activation_checkpointing, found.activation_offload

    whole, again, away = peaks
    assert [chosen(memory) for memory in (whole, whole - 1, again)] == [(False, False), (True, False), (True, False)]
    last = (True, kind == "cuda")
    assert [chosen(memory) for memory in (again - 1, away, 1)] == [last] * 3


def test_where_opening_the_base_is_the_peak_nothing_is_run_again_for_nothing():
    few = AMOUNT.model_copy(update={"largest": Largest(tokens=8, learned=4, squares=64, longest_row=8)})
    spec = spec_of()
    assert told(spec, few).total == told(turned(**AGAIN), few).total
    assert frugal_enough(SMOL, spec, few, Device(memory_bytes=1)) == spec


def test_the_estimate_says_of_which_it_is_and_that_it_takes_longer():
    plain, again = (estimate(SMOL, spec, AMOUNT, None) for spec in (spec_of(), turned(**AGAIN)))
    assert (plain.activation_checkpointing, again.activation_checkpointing) == (False, True)
    assert again.seconds > plain.seconds
    small = Device(memory_bytes=told(turned(**AGAIN)).total - 1)
    assert "training.activation_checkpointing" not in {
        one.param for one in estimate(SMOL, turned(**AGAIN), AMOUNT, small).advice
    }
