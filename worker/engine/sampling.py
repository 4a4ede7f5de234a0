"""From logits to the next token of each row. What a row draws depends on its own logits, seed and position alone.

The randomness is counter-based: token t of a row is drawn with the number that (seed, t) names. A replay of prompt and
emitted tokens elsewhere therefore continues the same stream, and neighbours cannot shift it.
"""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.shaping import Draw, shaped

GREEDY_BELOW = 1e-5  # temperatures under which dividing by them says nothing but "the largest"
CANDIDATES = 512  # the nucleus of nearly every row; rows with a wider one are sorted whole


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same one for the same (seed, position) on every machine."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 12) / 2.0**52


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """The next token of each row. logits [n, V] finite; draws: n of them.

    Semantics: for each row alone, its logits are shaped as it asks (shaping.py); temperature 0 takes the largest (the
    first of equals); otherwise they are divided by the temperature, those below the top_k-th largest are dropped
    (equals stay), then those outside the smallest set of the likeliest whose mass reaches top_p (equals stay), then
    those less likely than min_p times the likeliest, and one token is drawn in proportion to what is left.
    """
    logits = shaped(logits, draws)
    is_greedy = [d.sampling.temperature < GREEDY_BELOW for d in draws]
    greedy = [i for i, flag in enumerate(is_greedy) if flag]
    sampled = [i for i, flag in enumerate(is_greedy) if not flag]
    chosen = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    # In fp32, where both the largest is found and the rest is computed faster than in bf16.
    if greedy:
        chosen[greedy] = logits[greedy].float().argmax(-1)
    if sampled:
        chosen[sampled] = _sample(logits[sampled].float(), [draws[i] for i in sampled])
    ids: list[int] = chosen.tolist()
    return ids


def logprobs(logits: Tensor, draws: Sequence[Draw], tokens: Sequence[int]) -> list[float]:
    """How likely each row's token was where it was drawn; at temperature 0, to the model. logits [n, V] finite.

    The logarithm of its share of what top_k, top_p and min_p left, at the row's temperature. Rows that nobody asks
    about are not to be given: it costs what choose() costs.
    """
    found = []
    for row, (draw, token) in enumerate(zip(draws, tokens, strict=True)):
        own = shaped(logits[row : row + 1], [draw]).float()
        mass = own.softmax(-1) if draw.sampling.temperature < GREEDY_BELOW else _mass(own, [draw])
        share = mass[0].double()
        found.append(float((share[token] / share.sum()).log()))
    return found


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Of rows that are not greedy: logits [m, V] fp32 -> ids [m]."""
    reached = _mass(logits, draws).double().cumsum(-1)  # [m, V]
    numbers = [uniform(d.sampling.seed, d.position) for d in draws]
    targets = reached.new_tensor(numbers)[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, targets, right=True)[:, 0]


def _mass(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """What a token is drawn in proportion to: logits [m, V] fp32 of rows that are not greedy -> [m, V]."""
    temperature = logits.new_tensor([d.sampling.temperature for d in draws])[:, None]
    # The largest becomes 0 before the division, so that no temperature can overflow it.
    scaled = (logits - logits.amax(-1, keepdim=True)).div_(temperature)
    scaled = _keep_top_k(scaled, [d.sampling.top_k for d in draws])
    mass = _keep_top_p(scaled.softmax(-1), [d.sampling.top_p for d in draws])
    return _keep_min_p(mass, [d.sampling.min_p for d in draws])


def _keep_top_k(scaled: Tensor, top_k: Sequence[int]) -> Tensor:
    V = scaled.shape[-1]
    rows = [i for i, k in enumerate(top_k) if 0 < k < V]
    if not rows:
        return scaled
    at = torch.tensor(rows, device=scaled.device)
    largest = scaled[at].topk(max(top_k[i] for i in rows)).values  # [rows, K]
    floor = largest.gather(1, torch.tensor([[top_k[i] - 1] for i in rows], device=scaled.device))  # [rows, 1]
    kept = scaled.clone()
    kept[at] = scaled[at].masked_fill(scaled[at] < floor, -torch.inf)
    return kept


def _keep_top_p(mass: Tensor, top_p: Sequence[float]) -> Tensor:
    """Probabilities outside each row's nucleus made 0. mass [m, V]."""
    rows = [i for i, p in enumerate(top_p) if p < 1]
    if not rows:
        return mass
    at = torch.tensor(rows, device=mass.device)
    wanted = mass.new_tensor([top_p[i] for i in rows], dtype=torch.float64)[:, None]  # [rows, 1]
    floor = _nucleus_floor(mass[at], wanted)
    kept = mass.clone()
    kept[at] = mass[at].masked_fill(mass[at] < floor, 0.0)
    return kept


def _keep_min_p(mass: Tensor, min_p: Sequence[float]) -> Tensor:
    """Probabilities below each row's share of its likeliest made 0. mass [m, V]."""
    if not any(min_p):
        return mass
    least = mass.amax(-1, keepdim=True) * mass.new_tensor(min_p)[:, None]  # [m, 1]
    return mass.masked_fill(mass < least, 0.0)


def _nucleus_floor(mass: Tensor, wanted: Tensor) -> Tensor:
    """The smallest probability inside each row's nucleus, [m, 1]. Few rows need more than the first candidates."""
    V = mass.shape[-1]
    likeliest = mass.topk(min(CANDIDATES, V)).values  # [m, K]
    if likeliest.shape[-1] < V and bool((likeliest.double().sum(-1, keepdim=True) < wanted).any()):
        likeliest = mass.sort(-1, descending=True).values
    before = likeliest.double().cumsum(-1) - likeliest.double()  # mass of the likelier ones
    last = (before < wanted).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return likeliest.gather(1, last)
