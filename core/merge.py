"""A low-rank adapter made part of its base model: a plain Hugging Face folder that needs no adapter any more.

Every weight is dequantised to fp32, the update added there, and the sum rounded once to 16 bit. A base in 4 bit is not
quantised again: new block maxima would move more than a small adapter does (31 to 109 % of its output, as
measured). Knows no method and nothing of batches.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from core.base.facts import BaseFacts, facts_of
from core.effects import LowRank, norm_of

WEIGHTS = "model.safetensors"


def merged(weight: Tensor, effect: LowRank, site: str) -> Tensor:
    """What weight [O, I] of a linear layer becomes, in fp32: W + scale * BA, each row times magnitude / norm.

    weight: dequantised. It is left unchanged.
    """
    if site not in effect.a:
        return weight.float()
    a, b, scale = effect.a[site].to(weight.device).float(), effect.b[site].to(weight.device).float(), effect.scale[site]
    summed = torch.addmm(weight.float(), b, a, alpha=scale)
    if site not in effect.magnitude:
        return summed
    magnitude = effect.magnitude[site].to(weight.device)
    norm = effect.norm[site].to(weight.device) if site in effect.norm else norm_of(weight.float(), a, b, scale)
    return summed * (magnitude / norm)[:, None]


def merged_table(table: Tensor, effect: LowRank, site: str) -> Tensor:
    """What the token embeddings [V, H] become, in fp32. table is left unchanged."""
    if site not in effect.a:
        return table.float()
    a, b = effect.a[site].to(table.device).float(), effect.b[site].to(table.device).float()
    return torch.addmm(table.float(), a.T, b.T, alpha=effect.scale[site])


@torch.no_grad()
def write(model: PreTrainedModel, effect: LowRank, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write model with effect in it, weights and config, into folder, which is made; the tokeniser is not written.

    model: as it was opened, before a RoutedModel took its layers; it is left unchanged. Where the output head shares
    the embeddings and those were learned, the two part: the head stays as it was, as it did while training.

    Raises:
        ValueError: the effect names a layer that the model has not.

    """
    facts = facts_of(model)
    known = {(site.name, site.is_table) for site in (*facts.sites, facts.table_site)}
    if strangers := sorted(site for site in effect.a if (site, site in effect.tables) not in known):
        raise ValueError(f"no layer named {strangers[:8]} to merge into")
    folder.mkdir(parents=True, exist_ok=True)
    parts = facts.table_site.name in effect.a
    tensors = {name: t.to(dtype).cpu().contiguous().clone() for name, t in _tensors(model, facts, effect, parts=parts)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    if parts:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _tensors(model: PreTrainedModel, facts: BaseFacts, effect: LowRank, *, parts: bool) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the new model by its name. parts: the head no longer shares the embeddings."""
    linear = {site.name: site for site in facts.sites}
    for name, site in linear.items():
        weight = merged(facts.weight(name), effect, name)
        # A Conv1D keeps its weight the other way round.
        yield f"{name}.weight", weight.T if site.is_conv1d else weight
    table, head = f"{facts.table_site.name}.weight", _head_name(model)
    yield table, merged_table(facts.table, effect, facts.table_site.name)
    for name, tensor in model.state_dict().items():
        inside = next((site for site in linear if name.startswith(f"{site}.")), None)
        if name == table or (inside is not None and name != f"{inside}.bias"):
            continue  # written above; what a quantised layer keeps beside its weight is of no use any more
        if name == head and tensor.data_ptr() == facts.table.data_ptr() and not parts:
            continue
        yield name, tensor


def _head_name(model: PreTrainedModel) -> str:
    """The name of the output head's weight."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)
