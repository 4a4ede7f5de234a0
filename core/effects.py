"""What an adapter does to a frozen model. There are three ways, and the forward knows no fourth.

Letters, here and everywhere: B rows, T tokens of a row, N tokens of a ragged batch, H hidden, I and O a linear's
inputs and outputs, R rank, P virtual tokens, L layers, K key/value heads, D head width, S slots, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.specs.template import Layout


@dataclass(frozen=True, eq=False)
class LowRank:
    """Adds scale * (x Aᵀ Bᵀ) to the output of each named site. Hu et al. 2021, arXiv:2106.09685, section 4.1.

    A site that is a table of embeddings has token ids for inputs: I is V, and column v of A belongs to token v. A site
    with a magnitude is DoRA's (Liu et al. 2024, arXiv:2402.09353, section 4.1): its sum, the bias left out, is
    multiplied by magnitude / norm.
    """

    a: Mapping[str, Tensor]  # site -> [R, I]; the rank may differ from site to site
    b: Mapping[str, Tensor]  # site -> [O, R]
    scale: Mapping[str, float]  # site -> alpha / rank, or what the method says
    dropout: float = 0.0  # of x, while training
    tables: frozenset[str] = frozenset()  # the sites that are tables of embeddings
    magnitude: Mapping[str, Tensor] = field(default_factory=dict)  # site -> [O]
    # site -> [O]: length of each row of W + scale * BA, a constant to the gradient. A file does not hold it; who has
    # the base model's weights measures it (RoutedModel.resident).
    norm: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Supplies the embeddings of a row's virtual tokens, wherever the row put them: id -1 is row 0 of the prompt.

    The forward never reads where a row puts them; who builds rows does.
    """

    prompt: Tensor  # [P, H]
    template: Layout | None = None  # None is all in front

    @property
    def layout(self) -> Layout:
        """The ids about a row's input."""
        return self.template or Layout(tuple(range(-1, -1 - self.prompt.shape[0], -1)), ())


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """Puts P learned keys and values before a row's own, in every layer."""

    keys: Tensor  # [L, P, K, D], as they enter the cache: never rotated here
    values: Tensor  # [L, P, K, D]


def norm_of(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The length of each row of weight + scale * b a, without gradients: [O] of [O, I], [R, I] and [O, R], in fp32."""
    with torch.no_grad():
        summed = torch.addmm(weight, b.float(), a.float(), alpha=scale)
        # A row of nothing but zeros stays one, whatever its gain: it must not become NaN.
        norm: Tensor = torch.linalg.vector_norm(summed, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        return norm


Effect = LowRank | SoftPrompt | KVPrefix


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several effects of one task, learned side by side. No row wears it whole: each member has rows of its own.

    Lester et al. 2021, arXiv:2104.08691, section 6: the members' answers are put to a vote.
    """

    members: tuple[Effect, ...]


def members_of(effect: Effect | Ensemble) -> tuple[Effect, ...]:
    """What rows may wear of it: each of an ensemble's members, or the effect itself."""
    return effect.members if isinstance(effect, Ensemble) else (effect,)
