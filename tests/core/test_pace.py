"""How long a run will take where none of its kind was done: by the device's measured speed, and every sum adds."""

import dataclasses

import pytest
import torch
from test_estimate import AMOUNT, SMOL, spec_of

from core.estimate import estimate
from core.measured_constants import CONSTANTS, Pace
from core.pace import WORK, operations, seconds_of, work_of
from core.specs.estimate import Largest
from core.speed import products_per_s, with_speed

CPU = CONSTANTS["cpu"]


def timed(shape, pace):
    """What one epoch takes by these constants alone."""
    return seconds_of(work_of(shape, spec_of(), AMOUNT), shape, dataclasses.replace(CPU, pace=pace))


def test_a_device_twice_as_fast_at_products_takes_half_of_what_they_take():
    slow, fast = (SMOL.model_copy(update={"products_per_s": speed}) for speed in (5e10, 1e11))
    only = Pace(operations=1.3)
    assert timed(slow, only) == pytest.approx(2 * timed(fast, only))
    assert timed(fast, only) == pytest.approx(
        1.3 * operations(SMOL, spec_of(), AMOUNT.tokens, AMOUNT.learned_tokens) / 1e11
    )


def test_every_kind_of_work_adds_its_own_seconds():
    shape = SMOL.model_copy(update={"products_per_s": 1e11})
    nothing = Pace(operations=0)
    work = work_of(shape, spec_of({"type": "qlora"}), AMOUNT)
    for name in WORK:
        known = dataclasses.replace(CPU, pace=dataclasses.replace(nothing, **{name: 2.0}))
        assert seconds_of(work, shape, known) == pytest.approx(
            2 * work[name] / (1e11 if name == "operations" else 1)
        ), name
        assert work[name] > 0, name
    assert work_of(shape, spec_of(), AMOUNT)["dense"] == 0


def test_short_steps_enter_their_layers_as_often_as_long_ones():
    short = AMOUNT.model_copy(
        update={"tokens": 10_000, "largest": Largest(tokens=200, learned=1, squares=1, longest_row=9)}
    )
    assert work_of(SMOL, spec_of(), short)["calls"] == work_of(SMOL, spec_of(), AMOUNT)["calls"] == 63 * 30


def test_an_estimate_says_whose_measure_its_time_is():
    measured = estimate(SMOL.model_copy(update={"products_per_s": 1e11}), spec_of(), AMOUNT, None)
    guessed, known = (estimate(SMOL, spec_of(), AMOUNT, None, tokens_per_s=pace) for pace in (None, 1000.0))
    assert (measured.seconds_basis, guessed.seconds_basis, known.seconds_basis) == ("device", "default", "jobs")
    assert all(one.seconds_range[0] < one.seconds < one.seconds_range[1] for one in (measured, guessed, known))
    spread = [one.seconds_range[1] / one.seconds_range[0] for one in (known, measured, guessed)]
    assert spread == sorted(spread)


def test_the_speed_of_products_is_measured_of_the_sizes_that_the_layers_have(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("core.speed.time.perf_counter", lambda: next(clock))
    sizes = {(site.width_in, site.width_out) for site in SMOL.sites}
    done = sum(2.0 * 256 * a * b for a, b in sizes)
    assert products_per_s(SMOL, torch.device("cpu"), torch.float32) == done  # each round takes this clock one second


def test_this_machine_has_a_speed():
    shape = with_speed(SMOL, torch.device("cpu"), torch.float32)
    assert 1e8 < shape.products_per_s < 1e14
    assert shape.model_copy(update={"products_per_s": None}) == SMOL
