"""A frozen base model whose layers are divided over the processes of a team: FSDP2 (torch.distributed.fsdp).

Each process keeps its part of every layer and gathers a layer whole when it runs, forward and backward; adapters, the
table of embeddings, the last norm and the output head stay whole everywhere. Gathering takes everyone, so everyone goes
through the layers as often: who has no rows sends one bare token. Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et
al. 2020, arXiv:1910.02054, stage 3, without gradients or moments to divide, since the base has none.
"""

from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from core.base.facts import BaseFacts
from core.base.nf4 import Linear4bit
from core.model import RoutedModel, Rows
from core.orders import Passing
from core.routing import Routing
from core.team import Team

WHOLE = (
    "this method reads the base model's weights whole, which are divided over several devices (GRAFT_DIVIDE_BASE): "
    "choose LoRA without DoRA, PiSSA and OLoRA, or another method"
)


def divide(model: RoutedModel, team: Team) -> None:
    """Leaves this process its part of every layer, on the device that the model is on. Everyone does it at once.

    From here on nothing of a layer may be read by itself, and whenever the leader goes through the layers outside of a
    turn, the others are called to do so too.
    """
    layers = [module for module in model.base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        _as_parameters(layer)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    whole = {parameter for parameter in model.base.parameters() if parameter not in inside}
    mesh = init_device_mesh(model.device.type, (team.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model.base.base_model, mesh=mesh, ignored_params=whole)

    def call(_module: nn.Module, _args: Any, _named: Any) -> None:  # noqa: ANN401 - whatever a model is called with
        if team.is_leader and not team.is_in_turn:
            team.tell(Passing().model_dump_json())

    # Before FSDP's own hook, which waits for the others.
    model.base.base_model.register_forward_pre_hook(call, prepend=True, with_kwargs=True)
    team.is_dividing = True


def go_through(model: RoutedModel, *, is_learning: bool) -> None:
    """One bare token, so that others may gather their layers; with is_learning, back again too."""
    with torch.set_grad_enabled(is_learning), model.wearing(Routing.of_rows([None])):
        embeddings = model.base.get_input_embeddings()
        assert isinstance(embeddings, nn.Module)
        hook = embeddings.register_forward_hook(lambda _module, _args, words: words.requires_grad_(is_learning))
        try:
            hidden = model(Rows.of([[0]], device=model.device))
        finally:
            hook.remove()
        if is_learning:
            (hidden.sum() * 0).backward()


def without_weights(facts: BaseFacts) -> BaseFacts:
    """What a method may know of a divided base."""

    def refuse(*_: object) -> NoReturn:
        raise ValueError(WHOLE)

    return replace(facts, weight=refuse, project=refuse)


def _as_parameters(layer: nn.Module) -> None:
    """Weights in 4 bits are buffers, and only parameters are divided. Their scales, a thirtieth of them, stay whole."""
    for module in layer.modules():
        if isinstance(module, Linear4bit):
            packed = module.packed
            del module.packed
            module.packed = nn.Parameter(packed, requires_grad=False)
