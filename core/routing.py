"""Which effect each row of a batch wears. Knows no model: sites are names, rows are numbers."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.effects import Effect, Ensemble, KVPrefix, LowRank, SoftPrompt
from core.ops.plain import Part, Span


@dataclass(frozen=True, eq=False)
class Routing:
    """The effects of one batch, and the slot each row takes.

    An effect may be live (made this step, with gradients: training) or resident (made once, without: serving).
    Nothing past this class can tell which. Making one costs a few microseconds, so an engine makes one each step.
    """

    effects: tuple[Effect, ...]  # S of them, each once
    slot_of_row: tuple[int, ...]  # B; -1 is the bare base model
    dropout_keys: tuple[int, ...] | None = None  # B; None is no dropout, and no noise
    noise_alphas: tuple[float, ...] = ()  # B, 0 for a row without noise; or none at all

    @classmethod
    def of_rows(
        cls,
        effects: Sequence[Effect | None],
        *,
        dropout_keys: Sequence[int] | None = None,
        noise_alphas: Sequence[float] = (),
    ) -> "Routing":
        """One slot for each distinct effect, in order of first appearance.

        dropout_keys: one number for each row (see dropout_key) while training; without them nothing is dropped.
        noise_alphas: how much noise is added to each row's words, for rows that have keys (see noised).
        """
        if dropout_keys is not None and len(dropout_keys) != len(effects):
            raise ValueError(f"{len(dropout_keys)} dropout keys for {len(effects)} rows: each row needs one")
        distinct = list({id(e): e for e in effects if e is not None}.values())
        slots = {id(e): s for s, e in enumerate(distinct)}
        keys = None if dropout_keys is None else tuple(dropout_keys)
        worn = tuple(-1 if e is None else slots[id(e)] for e in effects)
        return cls(tuple(distinct), worn, keys, tuple(noise_alphas) if any(noise_alphas) else ())

    def of_row(self, row: int) -> Effect | None:
        """What one row wears."""
        slot = self.slot_of_row[row]
        return None if slot < 0 else self.effects[slot]

    def first_positions(self) -> list[int]:
        """Where each row's own tokens start to count: after its prefix, or at 0. For whole rows without a cache."""
        worn = [self.of_row(row) for row in range(len(self.slot_of_row))]
        return [e.keys.shape[1] if isinstance(e, KVPrefix) else 0 for e in worn]

    def spans(self, starts: Sequence[int]) -> list[Span]:
        """The tokens of low-rank rows, neighbours of one adapter joined. starts: B + 1 row boundaries."""
        found: list[Span] = []
        for row, slot in enumerate(self.slot_of_row):
            start, stop = starts[row], starts[row + 1]
            if slot < 0 or start == stop or not isinstance(self.effects[slot], LowRank):
                continue
            if found and found[-1].stop == start and found[-1].slot == slot:
                found[-1] = found[-1]._replace(stop=stop)
            else:
                found.append(Span(start, stop, slot))
        return found

    def parts(self, site: str) -> list[Part | None]:
        """What each slot does at one site: S parts."""
        return [
            Part(e.a[site], e.b[site], e.scale[site]) if isinstance(e, LowRank) and site in e.a else None
            for e in self.effects
        ]

    def gain(self, slot: int, site: str) -> Tensor | None:
        """What one slot multiplies the output of one site by: [O], or None for nothing."""
        effect = self.effects[slot]
        if not isinstance(effect, LowRank) or site not in effect.magnitude:
            return None
        return effect.magnitude[site] / effect.norm[site]

    def dropped(self, x: Tensor, site: str, starts: Sequence[int]) -> Tensor:
        """The input x [N, I] of one site's low-rank parts, each row at its effect's own rate."""
        wearing = [self._rate(row, site) for row in range(len(self.slot_of_row))]
        if self.dropout_keys is None or not any(wearing):
            return x
        keep = torch.ones_like(x)
        for row, rate in enumerate(wearing):
            if rate > 0:
                _draw(keep[starts[row] : starts[row + 1]], rate, self.dropout_keys[row], site)
        return x * keep

    def noised(self, words: Tensor, starts: Sequence[int]) -> Tensor:
        """The words [N, H] with each row's noise: uniform in ±alpha / sqrt(T H), where T is the row's length.

        NEFTune (Jain et al. 2023, arXiv:2310.05914, algorithm 1). Drawn by the row's key, as its dropout is.
        """
        if not self.noise_alphas or self.dropout_keys is None:
            return words
        noise = torch.zeros_like(words)
        for row, (alpha, key) in enumerate(zip(self.noise_alphas, self.dropout_keys, strict=True)):
            if alpha:
                mine = noise[starts[row] : starts[row + 1]]
                reach = alpha / math.sqrt(mine.numel())
                mine.uniform_(-reach, reach, generator=_generator(mine.device, key, "noise"))
        return words + noise

    def _rate(self, row: int, site: str) -> float:
        effect = self.of_row(row)
        return effect.dropout if isinstance(effect, LowRank) and site in effect.a else 0.0


def dropout_key(seed: int, step: int, row: int) -> int:
    """The key of one row's dropout at one step.

    A mask is a pure function of (key, site, shape, device): the same when a layer runs again in backward, when the
    row stands elsewhere in the batch, and when a stopped run resumes. No generator's state needs keeping. row is
    the row's place in its own run's data, not in the batch.
    """
    return _hash(f"{seed}/{step}/{row}")


def resident(effect: Effect, *, device: torch.device | str, dtype: torch.dtype) -> Effect:
    """The serving form: a copy without gradients, cast once. A scale is folded into B in fp32 and rounded there."""
    with torch.no_grad():
        match effect:
            case LowRank(a, b, scale):
                return LowRank(
                    {site: t.detach().to(device, dtype, copy=True) for site, t in a.items()},
                    {site: (t.float() * scale[site]).to(device, dtype) for site, t in b.items()},
                    dict.fromkeys(a, 1.0),
                    tables=effect.tables,
                    # Magnitudes stay in fp32: they multiply what the whole layer says.
                    magnitude={site: t.detach().float().to(device, copy=True) for site, t in effect.magnitude.items()},
                    norm={site: t.detach().float().to(device, copy=True) for site, t in effect.norm.items()},
                )
            case SoftPrompt(prompt, template):
                return SoftPrompt(prompt.detach().to(device, dtype, copy=True), template)
            case KVPrefix(keys, values):
                return KVPrefix(*(t.detach().to(device, dtype, copy=True) for t in (keys, values)))


def is_live(effect: Effect) -> bool:
    """Whether an effect carries gradients to parameters that change from step to step."""
    return any(t.requires_grad for t in tensors_of(effect))


def tensors_of(effect: Effect | Ensemble) -> Iterator[Tensor]:
    """Every tensor of an effect, or of all members of an ensemble."""
    match effect:
        case Ensemble(members):
            for member in members:
                yield from tensors_of(member)
        case LowRank(a, b):
            yield from a.values()
            yield from b.values()
            yield from effect.magnitude.values()
        case SoftPrompt(prompt):
            yield prompt
        case KVPrefix(keys, values):
            yield keys
            yield values


def _draw(keep: Tensor, rate: float, key: int, site: str) -> None:
    """Fill keep [T, I] with 0 or 1 / (1 - rate)."""
    keep.bernoulli_(1 - rate, generator=_generator(keep.device, key, site)).div_(1 - rate)


def _generator(device: torch.device, key: int, site: str) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(_hash(f"{key}/{site}") >> 1)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
