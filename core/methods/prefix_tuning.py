"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190): P learned keys and values before a row's own, in every layer.

Attention of a token uses keys [K; k] and values [V; v], where K and V [P, K, D] of a layer are the prefix's. Three ways
to learn them, all of which end as the same keys and values (section 4.2 of the paper is the second):

kv       the keys and values themselves: 2 * L * P * K * D numbers
mlp      row i is MLP(P'[i]), P' [P, H] learned too; the MLP is Linear, Tanh, Linear
hidden   hidden states p [L, P, H] that pass through the base's own key and value layers: RoPE(W_K p + b), W_V p + b

A key is used as it stands: what enters the cache is never rotated again. A prefix of real words so holds keys that were
rotated already, and a row behind it reads as if it stood behind the words.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.base.facts import BaseFacts, Reading, words_of
from core.effects import Effect, Ensemble, KVPrefix
from core.methods.layers import linear
from core.optimisers import Group
from core.specs.continuing import must_continue
from core.specs.method import PrefixTuningSpec

FIT_RATE = 1e-4  # Adam's, while the MLP is fitted to words: the authors' code
START = 0.1  # of random starts; docs/decisions/0006-virtual-tokens-start-small.md


class PrefixTuning(nn.Module):
    """Learned keys and values of every layer, in fp32 whatever the base computes in."""

    def __init__(self, spec: PrefixTuningSpec, facts: BaseFacts, *, generator: torch.Generator | None = None) -> None:
        """Start from generator (the global one without), or from words. Raises ValueError if the base cannot read."""
        super().__init__()
        self.spec = spec
        self.base_precision: str = spec.base_precision
        self._shape = (facts.layers, facts.kv_heads, facts.head_width)
        self.prefix: _Prefix = _PREFIXES[spec.parametrization](spec, facts, generator)  # type: ignore[assignment]
        if spec.prefix_init_text is not None:
            self.prefix.start_from(_read(spec.prefix_init_text, spec.num_virtual_tokens, facts))

    def effect(self) -> KVPrefix:
        """Keys and values [L, P, K, D]: made anew at each call, since what makes them learns."""
        return KVPrefix(*self.prefix())

    def groups(self) -> list[Group]:
        """All at one rate."""
        return [Group(list(self.parameters()))]

    def penalty(self) -> Tensor:
        """None: 0."""
        return torch.zeros((), device=next(self.parameters()).device)

    def after_step(self, step: int, of: int) -> None:
        """Nothing."""

    def peft_config(self) -> dict[str, Any]:
        """A PREFIX_TUNING config of the keys and values alone: no reader needs what made them."""
        layers, heads, width = self._shape
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": self.spec.num_virtual_tokens,
            "token_dim": heads * width,
            "num_attention_heads": heads,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": heads * width,
            "prefix_projection": False,
        }

    def continue_from(self, effect: Effect | Ensemble) -> None:
        """Takes the keys and values, where they are what is learned. Their number must be the same."""
        must_continue(self.spec, "PREFIX_TUNING" if isinstance(effect, KVPrefix) else type(effect).__name__)
        assert isinstance(effect, KVPrefix)
        if (count := effect.keys.shape[1]) != self.spec.num_virtual_tokens:
            raise ValueError(f"num_virtual_tokens is {self.spec.num_virtual_tokens}, and of the adapter it is {count}")
        self.prefix.start_from(Reading(effect.keys, effect.values, effect.keys))


class _Prefix(Protocol):
    """One way to learn a prefix."""

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Keys and values [L, P, K, D]."""
        ...

    def start_from(self, reading: Reading) -> None:
        """Begin as the words that were read."""
        ...


class _Pairs(nn.Module):
    """The keys and values themselves."""

    def __init__(self, spec: PrefixTuningSpec, facts: BaseFacts, generator: torch.Generator | None) -> None:
        super().__init__()
        shape = (facts.layers, spec.num_virtual_tokens, facts.kv_heads, facts.head_width)
        self.keys = nn.Parameter(torch.empty(shape).normal_(0, START, generator=generator))
        self.values = nn.Parameter(torch.empty(shape).normal_(0, START, generator=generator))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def start_from(self, reading: Reading) -> None:
        with torch.no_grad():
            self.keys.copy_(reading.keys)
            self.values.copy_(reading.values)


class _MLP(nn.Module):
    """An MLP over P' [P, H], the paper's. Of its outputs 2l is the key of layer l, 2l + 1 the value."""

    def __init__(self, spec: PrefixTuningSpec, facts: BaseFacts, generator: torch.Generator | None) -> None:
        super().__init__()
        self._shape = (spec.num_virtual_tokens, facts.layers, 2, facts.kv_heads, facts.head_width)
        self._fit_steps = spec.fit_steps
        self.seed = nn.Parameter(torch.empty(spec.num_virtual_tokens, facts.hidden).normal_(generator=generator))
        width_out = 2 * facts.layers * facts.kv_heads * facts.head_width
        self.mlp = nn.Sequential(
            linear(facts.hidden, spec.encoder_hidden_size, generator),
            nn.Tanh(),
            linear(spec.encoder_hidden_size, width_out, generator),
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        both = self.mlp(self.seed).view(self._shape)  # [P, L, 2, K, D]
        return both[:, :, 0].transpose(0, 1), both[:, :, 1].transpose(0, 1)

    def start_from(self, reading: Reading) -> None:
        """Fits the MLP's outputs to the words' keys and values: the authors' path where data is scarce."""
        wanted = torch.stack([reading.keys, reading.values])  # [2, L, P, K, D]
        optimiser = torch.optim.Adam(self.parameters(), lr=FIT_RATE, fused=True)
        with torch.enable_grad():
            for _ in range(self._fit_steps):
                optimiser.zero_grad()
                nn.functional.mse_loss(torch.stack(self()), wanted).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        optimiser.zero_grad()


class _States(nn.Module):
    """Hidden states that enter each layer's attention. They can say less than keys and values can."""

    def __init__(self, spec: PrefixTuningSpec, facts: BaseFacts, generator: torch.Generator | None) -> None:
        super().__init__()
        if facts.project is None:
            raise ValueError("parametrization 'hidden' needs a base model that is open: its facts do not project")
        self._project = facts.project
        shape = (facts.layers, spec.num_virtual_tokens, facts.hidden)
        self.states = nn.Parameter(torch.empty(shape).normal_(0, START, generator=generator))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self._project(self.states)

    def start_from(self, reading: Reading) -> None:
        with torch.no_grad():
            self.states.copy_(reading.hidden)


_PREFIXES: dict[str, Callable[[PrefixTuningSpec, BaseFacts, torch.Generator | None], nn.Module]] = {
    "kv": _Pairs,
    "mlp": _MLP,
    "hidden": _States,
}


def _read(text: str, count: int, facts: BaseFacts) -> Reading:
    """The base's reading of count words of the text: its first ones, or all of it again and again."""
    if facts.read is None:
        raise ValueError("prefix_init 'text' needs a base model that is open: its facts do not read")
    ids = words_of(facts, text)
    found = facts.read([ids[i % len(ids)] for i in range(count)])
    return Reading(found.keys.cpu(), found.values.cpu(), found.hidden.cpu())
