"""A model that is to serve, its frozen weights laid out for small batches: faster decoding for twice the memory."""

from torch import nn

from core.linear import RoutedLinear
from core.model import RoutedModel
from core.ops.packed import is_packable, pack


def packed_bytes(model: RoutedModel) -> int:
    """What the copies of pack_model take."""
    weights = [s.base.weight for s in _sites(model) if isinstance(s.base, nn.Linear)]
    return sum(w.numel() * w.element_size() for w in [*weights, model.head.weight] if is_packable(w))


def pack_model(model: RoutedModel) -> bool:
    """Lays out what can be: in fp32 on a CPU. Whether anything was. The copies do not follow a weight that changes."""
    sites = _sites(model)
    for site in sites:
        assert isinstance(site.base, nn.Linear)
        site.packed = pack(site.base.weight)
    weight = model.head.weight
    model.packed_head = pack(weight) if is_packable(weight) else None
    return bool(sites)


def _sites(model: RoutedModel) -> list[RoutedLinear]:
    return [s for s in model.sites.values() if isinstance(s.base, nn.Linear) and is_packable(s.base.weight)]
