"""P-tuning (Liu et al. 2021, arXiv:2103.10385): virtual tokens anywhere in a template, made by a small encoder.

All virtual tokens of a template are one sequence for the encoder, whatever words stand between them (equation 5):

    h_i = MLP([LSTM forward_i ; LSTM backward_i]) of the learned seeds [P, H]

With a width of half the base's in each direction these are the shapes of the authors' LAMA code: H to H to H to H. Or
the MLP alone makes them. Afterwards only h is kept: the encoder is live in training, and baked wherever it is read.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.base.facts import BaseFacts
from core.effects import Effect, Ensemble, SoftPrompt
from core.methods.layers import bidirectional_lstm, linear
from core.methods.prompt_tuning import prompt_config
from core.optimisers import Group
from core.specs.continuing import must_continue
from core.specs.method import PTuningSpec
from core.specs.template import Layout

Drop = Callable[[Tensor, int], Tensor]  # what a layer put out, and the layer's number


class PTuning(nn.Module):
    """An encoder and its seeds, in fp32 whatever the base computes in.

    Dropout's masks are a function of (key, step, layer), both kept in state_dict(): a step has one mask for all its
    micro-batches, and a run that was stopped draws the masks it would have drawn. Without gradients nothing drops.
    """

    key: Tensor  # []
    step: Tensor  # [] steps done

    def __init__(self, spec: PTuningSpec, facts: BaseFacts, *, generator: torch.Generator | None = None) -> None:
        """Draw seeds and encoder from generator (the global one without).

        Seeds are N(0, 1), as torch's Embedding of the authors. The last layer is scaled so that the prompt starts at
        the root mean square of the base's own embeddings, which differs a hundredfold between bases.

        Raises:
            ValueError: the template has words, and the base no tokeniser.

        """
        super().__init__()
        self.spec = spec
        self.base_precision: str = spec.base_precision
        self.layout = _layout(spec, facts)
        self._table_scale = facts.table_scale
        self._vocabulary, self._specials, self._embedding = facts.vocabulary, facts.specials, facts.table_site.name
        count = spec.row_template.num_virtual_tokens
        self.seeds = nn.Parameter(torch.empty(count, facts.hidden).normal_(generator=generator))
        self.encoder = _ENCODERS[spec.encoder_reparameterization_type](spec, facts.hidden, generator)
        self.register_buffer("key", torch.randint(2**31, (), generator=generator))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        with torch.no_grad():
            factor = _rms(facts.table) * facts.table_scale / _rms(self.effect().prompt)
            for parameter in self.encoder.last.parameters():
                parameter.mul_(factor)

    def effect(self) -> SoftPrompt:
        """The encoder's outputs [P, H] where the template has them: live with gradients, without them a constant."""
        return SoftPrompt(self.encoder(self.seeds, self._dropped), self.layout)

    def groups(self) -> list[Group]:
        """All at one rate."""
        return [Group(list(self.parameters()))]

    def penalty(self) -> Tensor:
        """None: 0."""
        return torch.zeros((), device=self.seeds.device)

    def after_step(self, step: int, of: int) -> None:  # noqa: ARG002 - every method is told
        """Dropout draws other masks from here on."""
        self.step.fill_(step)

    def peft_config(self) -> dict[str, Any]:
        """PROMPT_TUNING where the virtual tokens stand in front; else TRAINABLE_TOKENS, over ids that nobody uses."""
        if self.spec.row_template.is_in_front:
            return prompt_config(self.seeds)
        return {
            "peft_type": "TRAINABLE_TOKENS",
            "token_indices": self._reserved(),
            "target_modules": [self._embedding],
            "init_weights": True,
            "graft_template": {"template": self.spec.template, "table_scale": self._table_scale},
        }

    def continue_from(self, effect: Effect | Ensemble) -> None:
        """Never: ValueError."""
        must_continue(self.spec, type(effect).__name__)

    def _dropped(self, x: Tensor, layer: int) -> Tensor:
        rate = self.spec.encoder_dropout
        if not rate or not torch.is_grad_enabled():
            return x
        digest = hashlib.blake2b(f"{int(self.key)}/{int(self.step)}/{layer}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        # Drawn on a CPU whatever x is on, so that every machine draws the same.
        keep = torch.empty(x.shape).bernoulli_(1 - rate, generator=generator).div_(1 - rate)
        return x * keep.to(x.device)

    def _reserved(self) -> list[int]:
        """P ids, ascending: the last of the vocabulary that are neither anchors nor special. Rows beyond a tokeniser's
        words come first among them, and rare words where there are none.
        """  # noqa: D205 - two sentences
        used = {*self.layout.before, *self.layout.after, *self._specials}
        free = [i for i in range(self._vocabulary) if i not in used]
        return free[-len(self.seeds) :]


class _LSTM(nn.Module):
    """LSTM layers in both directions, then an MLP."""

    def __init__(self, spec: PTuningSpec, hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        width = _width(spec, hidden)
        widths = [hidden] + [2 * width] * (spec.encoder_num_layers - 1)
        self.layers = nn.ModuleList(bidirectional_lstm(width_in, width, generator) for width_in in widths)
        self.first = linear(2 * width, 2 * width, generator)
        self.last = linear(2 * width, hidden, generator)

    def forward(self, seeds: Tensor, dropped: Drop) -> Tensor:
        x = seeds  # [P, H]
        for number, layer in enumerate(self.layers):
            x = layer(dropped(x, number) if number else x)[0]  # [P, 2 * width]
        out: Tensor = self.last(self.first(x).relu())
        return out


class _MLP(nn.Module):
    """An MLP alone: each virtual token by itself."""

    def __init__(self, spec: PTuningSpec, hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        width = 2 * _width(spec, hidden)
        self.first = linear(hidden, width, generator)
        self.last = linear(width, hidden, generator)

    def forward(self, seeds: Tensor, _: Drop) -> Tensor:
        out: Tensor = self.last(self.first(seeds).relu())
        return out


_ENCODERS: dict[str, Callable[[PTuningSpec, int, torch.Generator | None], _LSTM | _MLP]] = {"LSTM": _LSTM, "MLP": _MLP}


def _width(spec: PTuningSpec, hidden: int) -> int:
    """Of one direction."""
    return hidden // 2 if spec.encoder_hidden_size == "auto" else spec.encoder_hidden_size


def _rms(t: Tensor) -> float:
    """The root mean square, in fp32 and without a copy: a table may be large."""
    return float(torch.linalg.vector_norm(t, dtype=torch.float32)) / math.sqrt(t.numel())


def _layout(spec: PTuningSpec, facts: BaseFacts) -> Layout:
    def encode(text: str) -> list[int]:
        if facts.encode is None:
            raise ValueError(f"the template has words, {text[:40]!r}, and this base model has no tokeniser")
        return facts.encode(text)

    return spec.row_template.layout(encode)
