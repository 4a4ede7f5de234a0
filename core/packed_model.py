"""A model that is to serve, its frozen weights laid out for that: siblings as one, and for small batches on a CPU.

On a CPU in fp32 this takes twice the memory. On a GPU the weights move into common tensors and take no more; what they
are does not change, so gradients still flow past them as they did.
"""

from torch import nn

from core.model import RoutedModel
from core.ops.packed import is_packable, pack
from core.siblings import Siblings, siblings_of


def packed_bytes(model: RoutedModel) -> int:
    """What the copies of pack_model take."""
    weights = [s.base.weight for s in model.sites.values() if isinstance(s.base, nn.Linear)]
    return sum(w.numel() * w.element_size() for w in [*weights, model.head.weight] if is_packable(w))


def pack_model(model: RoutedModel, *, with_siblings: bool = True) -> bool:
    """Lays out what can be: in fp32 on a CPU, or on a GPU. Whether anything was. Copies do not follow later changes.

    with_siblings: layers of one input become one product; without, each is laid out for itself.
    """
    weight = model.head.weight
    if not is_packable(weight) and model.device.type == "cpu":
        return False
    model.packed_head = pack(weight) if is_packable(weight) else None
    groups = [Siblings(sites) for sites in siblings_of(model.sites)] if with_siblings else []
    if model.pool.is_for_kernels:
        for group in groups:
            model.pool.share(group.widths)
    alone = [s for s in model.sites.values() if isinstance(s.base, nn.Linear) and s.siblings is None]
    for site in alone:
        assert isinstance(site.base, nn.Linear)
        site.packed = pack(site.base.weight) if is_packable(site.base.weight) else None
    return bool(groups) or any(site.packed is not None for site in alone)
