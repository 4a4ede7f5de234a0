"""NF4 with double quantisation as one reads it: a weight in 4 bits, its scales in 8. Dettmers et al. 2023, section 3.

A weight is cut into blocks of 64; each block keeps its largest absolute value, and of every entry the nearest of 16
levels, which are quantiles of a normal distribution. The scales, less their mean, are themselves quantised to 8 bits
in groups of 256. Nothing calls this in earnest: bitsandbytes does the work, and the tests hold it to what stands here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64  # entries that share a scale
GROUP = 256  # scales that share a scale of theirs

FEW = 64  # tokens up to which a product reads 4 bits faster than it reads 16 that were made of them (a guess)

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, eq=False)
class Quantised:
    """A tensor of n entries in NF4. C is ceil(n / 64) blocks, G is ceil(C / 256) groups of their scales."""

    packed: Tensor  # [ceil(n / 2)] uint8: two codes each, the first in the high half
    scales: Tensor  # [C] uint8: codes of the dynamic map
    peaks: Tensor  # [G] fp32: the scale of each group of scales
    offset: Tensor  # [] fp32: the mean of the scales
    shape: torch.Size

    def bits_per_entry(self) -> float:
        """What is stored of it, but for the offset and the two maps, whose size is the same for every tensor."""
        stored = sum(part.numel() * part.element_size() for part in (self.packed, self.scales, self.peaks))
        return 8 * stored / self.shape.numel()


def quantise(weight: Tensor) -> Quantised:
    """Semantics: row-major blocks of 64, the last one short if need be, none crossing into another tensor."""
    codes, absmax = codes_of(weight.float(), weight.new_tensor(LEVELS, dtype=torch.float32), BLOCK)
    offset = absmax.mean()
    scales, peaks = codes_of(absmax - offset, dynamic_map(), GROUP)
    return Quantised(pack(codes), scales, peaks, offset, weight.shape)


def dequantise(quantised: Quantised) -> Tensor:
    """The weight again, in fp32: level times scale."""
    absmax = values_of(quantised.scales, quantised.peaks, dynamic_map(), GROUP) + quantised.offset
    codes = unpack(quantised.packed, quantised.shape.numel())
    return values_of(codes, absmax, torch.tensor(LEVELS), BLOCK).view(quantised.shape)


def can_multiply(tokens: int, inputs: int) -> bool:
    """Whether a product may read so many tokens' weight in 4 bits: two codes of one byte must stand in one row."""
    return tokens <= FEW and inputs % 2 == 0


def codes_of(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The nearest level of every value over its block's largest magnitude; of two as near, the lower.

    Args:
        values: any shape, n entries.
        levels: ascending, at most 256, among them 0.
        block: entries that share a scale.

    Returns:
        [n] uint8 codes, [ceil(n / block)] scales. A block of zeros has scale 0 and the code of level 0.

    """
    flat = values.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(1)
    inverse = 1 / torch.where(absmax > 0, absmax, 1)
    scaled = (blocks * inverse[:, None]).flatten()[: len(flat)]
    return torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2).to(torch.uint8), absmax


def values_of(codes: Tensor, absmax: Tensor, levels: Tensor, block: int) -> Tensor:
    """[n] of codes [n] and the scales [ceil(n / block)] of their blocks."""
    return levels[codes.long()] * absmax.repeat_interleave(block)[: len(codes)]


def pack(codes: Tensor) -> Tensor:
    """[n] codes under 16, two to a byte: [ceil(n / 2)]. The first stands in the high half; 0.0 fills an odd end."""
    even = torch.nn.functional.pad(codes, (0, len(codes) % 2), value=LEVELS.index(0.0))
    return (even[::2] << 4) | even[1::2]


def unpack(packed: Tensor, n: int) -> Tensor:
    """[ceil(n / 2)] bytes to the n codes in them."""
    return torch.stack([packed >> 4, packed & 15], 1).flatten()[:n]


def dynamic_map() -> Tensor:
    """The signed dynamic 8-bit map of bitsandbytes, ascending: [256]. Dettmers 2016, arXiv:1511.04561.

    Seven decades below 1, each with twice as many values of either sign as the one under it; 0; and 1 itself.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        values += [*middles, *(-middle for middle in middles)]
    return torch.tensor(sorted(values))
