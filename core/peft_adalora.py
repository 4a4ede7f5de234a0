"""AdaLoRA as Hugging Face PEFT writes it by its own name: what an ADALORA config and its tensors mean. Knows no file.

P is lora_B [O, R], Λ lora_E [R, 1], Q lora_A [R, I], cut to the rows that are kept; rank_pattern says which those were.
The scale stays lora_alpha / init_r. Our own adapters leave as plain LORA, which more readers know, unless export_as
asks for this, as those do who go on pruning elsewhere; and it is how others' adapters are read.
"""

import re
from typing import Any

from torch import Tensor

from core.effects import LowRank
from core.methods.adalora import NEVER_ZERO, AdaLora, Triplets
from core.peft_low_rank import HARMLESS, ROOT, number, refuse_variants

PART = re.compile(r"^base_model\.model\.(?P<site>.+)\.lora_(?P<side>[ABE])$")
SCHEDULE = ("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")


def adalora(config: dict[str, Any], tensors: dict[str, Tensor]) -> LowRank:
    """What an ADALORA folder does, Λ folded into A. Raises ValueError for one that means more than that."""
    refuse_variants(config, HARMLESS | {*SCHEDULE})
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}, "E": {}}
    for name, tensor in tensors.items():
        match = PART.match(name)
        if match is None:
            raise ValueError(f"a tensor that is not understood: {name}")
        sides[match["side"]][match["site"]] = tensor
    q, p, e = sides.values()
    if not q.keys() == p.keys() == e.keys() or not q:
        missing = (q.keys() | p.keys() | e.keys()) - (q.keys() & p.keys() & e.keys())
        raise ValueError(f"lora_A, lora_B or lora_E is missing of {sorted(missing)[:8] or 'every layer'}")
    for site in q:
        if not q[site].shape[0] == p[site].shape[1] == e[site].shape[0] or e[site].shape[1] != 1:
            shapes = [tuple(side[site].shape) for side in (q, p, e)]
            raise ValueError(f"{site}: lora_A, lora_B and lora_E {shapes} share no rank")
    rank, dropout = number(config, "init_r", 12), number(config, "lora_dropout", 0.0)
    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(f"init_r {rank} is not at least 1, or lora_dropout {dropout} not between 0 and 1")
    alpha = number(config, "lora_alpha", 8)
    scale = (alpha if alpha > 0 else rank) / (rank + NEVER_ZERO)
    kept = [site for site in q if q[site].shape[0]]
    return LowRank(
        {site: q[site] * e[site] for site in kept},
        {site: p[site] for site in kept},
        dict.fromkeys(kept, scale),
        dropout,
    )


def adalora_tensors(method: AdaLora) -> dict[str, Tensor]:
    """As an ADALORA file holds them: the kept rows of P, Λ and Q. A rank of 0 is allowed here."""
    found: dict[str, Tensor] = {}
    for site, t in zip(method.sites, method.triplets, strict=True):
        assert isinstance(t, Triplets)
        found |= {
            f"{ROOT}{site.name}.lora_A": t.q[t.kept],
            f"{ROOT}{site.name}.lora_E": t.e[t.kept],
            f"{ROOT}{site.name}.lora_B": t.p[:, t.kept],
        }
    return found
