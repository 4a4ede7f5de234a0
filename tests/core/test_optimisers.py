"""The optimisers a job may name: the same steps whether paged or not, and a state that comes back bit for bit."""

import pytest
import torch
from bitsandbytes.optim import AdamW32bit
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from token_rows import new_run
from torch import nn

from core.optimisers import Group, in_force, optimiser_of, state_of
from core.trainer import train

CPU = torch.device("cpu")
ALL = ("adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor")
EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
LARGE = {"r": 64}  # adapters of 4,096 entries, so that their moments are kept in 8 bits


def weights(run):
    return [parameter.detach().clone() for parameter in run.method.parameters()]


def trained(model, **spec):
    run = new_run(model, **spec)
    losses = [event.loss for event in train(model, [run])]
    return run, losses


def are_same_bits(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def through_disk(tensors):
    return tensors_of(bytes_of({name: tensor.contiguous() for name, tensor in tensors.items()}))


def test_on_a_cpu_a_paged_optimiser_is_its_unpaged_form():
    assert [in_force(name, CPU) for name in ALL] == ["adamw", "adamw_8bit", "adamw", "adamw_8bit", "adafactor"]
    assert [in_force(name, torch.device("cuda")) for name in ALL] == list(ALL)


@pytest.mark.parametrize(("paged", "plain"), [("paged_adamw_32bit", "adamw"), ("paged_adamw_8bit", "adamw_8bit")])
def test_a_paged_optimiser_goes_the_way_of_the_plain_one(llama, paged, plain):
    one, losses = trained(llama, optimizer=paged, method=LARGE)
    other, expected = trained(llama, optimizer=plain, method=LARGE)
    assert losses == expected
    assert are_same_bits(weights(one), weights(other))


def test_the_32_bit_adam_of_bitsandbytes_goes_the_way_of_torch_s():
    torch.manual_seed(0)
    mine, theirs = (nn.Parameter(torch.linspace(-1, 1, 5000)) for _ in range(2))
    optimisers = (
        optimiser_of("adamw", [Group([mine])], weight_decay=0.1),
        AdamW32bit([theirs], weight_decay=0.1),
    )
    for _ in range(20):
        gradient = torch.randn(5000)
        for parameter, optimiser in zip((mine, theirs), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.param_groups[0]["lr"] = 0.01
            optimiser.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (7,), (2, 3, 5)])
def test_adafactor_is_the_papers_algorithm(shape):
    """Algorithm 4 with a step's size of the learning rate: beta2 of step t is 1 - t^-0.8, updates are clipped at 1."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator) * 0.1
    mine, theirs = nn.Parameter(start.clone()), start.clone().double()
    optimiser = optimiser_of("adafactor", [Group([mine])], weight_decay=0.1)
    rows = columns = whole = 0.0
    for step in range(1, 11):
        gradient = torch.randn(shape, generator=generator)
        mine.grad, g = gradient.clone(), gradient.double()
        optimiser.param_groups[0]["lr"] = 0.01
        optimiser.step()
        beta2 = 1 - step**-0.8
        if len(shape) > 1:
            rows = beta2 * rows + (1 - beta2) * g.square().mean(-1, keepdim=True)
            columns = beta2 * columns + (1 - beta2) * g.square().mean(-2, keepdim=True)
            moment = rows * columns / rows.mean(-2, keepdim=True)
        else:
            whole = moment = beta2 * whole + (1 - beta2) * g.square()
        update = g / moment.sqrt()
        update /= max(1.0, update.square().mean().sqrt().item())
        theirs = theirs * (1 - 0.01 * 0.1) - 0.01 * update
    assert torch.allclose(mine.double(), theirs, atol=1e-6)


def test_adafactor_moves_zeros_at_the_rate_itself_and_keeps_a_small_state():
    zeros = nn.Parameter(torch.zeros(64, 64))
    optimiser = optimiser_of("adafactor", [Group([zeros])], weight_decay=0.0)
    zeros.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    optimiser.param_groups[0]["lr"] = 0.01
    optimiser.step()
    assert zeros.square().mean().sqrt().item() == pytest.approx(0.01, rel=0.05)
    assert sum(tensor.numel() for tensor in state_of(optimiser)[0].values()) < 64 * 64 / 30


def test_8_bit_moments_take_under_a_third_and_lead_nearly_the_same_way(llama):
    one, losses = trained(llama, optimizer="adamw_8bit", method=LARGE)
    other, expected = trained(llama, optimizer="adamw", method=LARGE)

    assert losses == pytest.approx(expected, rel=0.05)
    assert not are_same_bits(weights(one), weights(other))
    size = {
        run: sum(t.numel() * t.element_size() for moments in state_of(run.optimiser).values() for t in moments.values())
        for run in (one, other)
    }
    assert size[one] < size[other] / 3


def test_small_tensors_keep_their_moments_in_32_bits(llama):
    run, _ = trained(llama, optimizer="adamw_8bit", method={"r": 2})
    assert {moments["state1"].dtype for moments in state_of(run.optimiser).values()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ALL)
def test_loaded_after_any_step_a_run_ends_with_the_same_bits(llama, optimizer):
    how = {"optimizer": optimizer, "method": LARGE, "rows": 6, "batch_size": 2}
    whole = new_run(llama, **how)
    states = []
    for _ in train(llama, [whole]):
        tensors, facts = whole.state()
        states.append((through_disk(tensors), facts))
    for tensors, facts in states:
        again = new_run(llama, start=1, **how)
        again.load(tensors, facts)
        list(train(llama, [again]))
        assert are_same_bits(weights(again), weights(whole))


@pytest.mark.parametrize("lost", ["state1", "absmax2", "step"])
def test_a_part_of_an_8_bit_state_that_were_lost_would_show(llama, lost):
    how = {"optimizer": "adamw_8bit", "method": LARGE}
    whole, stopped, again = (new_run(llama, **how) for _ in range(3))
    list(train(llama, [whole]))
    steps = train(llama, [stopped])
    next(steps), next(steps)
    tensors, facts = stopped.state()
    name = f"optimiser.0.{lost}"
    again.load(tensors | {name: torch.zeros_like(tensors[name])}, facts)
    list(train(llama, [again]))
    assert not are_same_bits(weights(again), weights(whole))


@pytest.mark.parametrize("optimizer", ALL)
def test_groups_keep_how_fast_they_learn(llama, optimizer):
    run, _ = trained(llama, optimizer=optimizer, method={"loraplus_lr_ratio": 8.0})
    factors = [group["rate_factor"] for group in run.optimiser.param_groups]
    rates = [group["lr"] for group in run.optimiser.param_groups]
    assert factors == [1.0, 8.0]
    assert rates[1] == 8 * rates[0]
