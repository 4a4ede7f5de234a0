"""The methods, side by side: how an effect is learned. How it is applied is not known here."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from core.effects import Effect, Ensemble
from core.methods.adalora import AdaLora
from core.methods.lora import Lora
from core.methods.p_tuning import PTuning
from core.methods.prefix_tuning import PrefixTuning
from core.methods.prompt_tuning import PromptTuning
from core.methods.qlora import QLora
from core.optimisers import Group


class Method(Protocol):
    """A small trainable thing beside a frozen model. It never touches the model:
    it says, through its effect, what is to be done to it.

    Its trainable state is parameters(), its checkpoint state_dict(), both from nn.Module.
    """  # noqa: D205 - two lines, one sentence

    base_precision: str  # "bf16" or "nf4": the base it is trained and served on

    def effect(self) -> Effect | Ensemble:
        """What it does now; differentiable while training. Called once for each forward."""
        ...

    def groups(self) -> list[Group]:
        """What is learned, and how fast: every parameter, once."""
        ...

    def penalty(self) -> Tensor:
        """What it adds to the loss of an optimiser step, []."""
        ...

    def after_step(self, step: int, of: int) -> None:
        """Called after optimiser.step(), the gradients still in place. step counts from 1 up to of."""
        ...

    def peft_config(self) -> dict[str, Any]:
        """adapter_config.json, as HF PEFT reads it."""
        ...

    def continue_from(self, effect: Effect | Ensemble) -> None:
        """Becomes what an adapter's file says, to be trained further.

        Raises ValueError, which says why, where the file does not hold what is trained.
        """
        ...

    def to(self, device: torch.device) -> Self:
        """Itself, on another device: nn.Module's own."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: FBT001, FBT002 - nn.Module's own
        """What the optimiser steps: fp32, whatever the base computes in."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:  # noqa: ANN401 - nn.Module's own
        """The reverse."""
        ...


METHODS: dict[str, Callable[..., Method]] = {
    "lora": Lora,
    "qlora": QLora,
    "adalora": AdaLora,
    "prefix_tuning": PrefixTuning,
    "prompt_tuning": PromptTuning,
    "p_tuning": PTuning,
}
