"""AdaLoRAs as if trained, the same for the same arguments."""

import torch

from core.methods.adalora import AdaLora
from core.specs.method import AdaLoraSpec


def new_adalora(facts, *, seed=0, **spec):
    generator = torch.Generator().manual_seed(seed)
    return AdaLora(AdaLoraSpec(**({"init_r": 6, "target_r": 3, "lora_alpha": 12.0} | spec)), facts, generator=generator)


def stirred(method, *, seed=3, size=0.2):
    """As if trained for a while."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return method


def with_gradients(method, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in method.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return method


def pruned(facts, *, of=4, **spec):
    """One that has been through a whole run of random gradients."""
    method = stirred(new_adalora(facts, **spec))
    for step in range(1, of + 1):
        with_gradients(method, step)
        stirred(method, seed=step, size=0.02)
        method.after_step(step, of)
    return method
