"""The shape of an opened base model as numbers alone, for the front end to reckon with. The model is left unchanged."""

from transformers import PreTrainedModel

from core.base.facts import BaseFacts, facts_of
from core.specs.estimate import BaseShape, SiteShape


def shape_of(model: PreTrainedModel, facts: BaseFacts | None = None) -> BaseShape:
    """facts: of this model, where somebody has them; a model that is routed already has them no more."""
    known = facts or facts_of(model)
    config = model.config.get_text_config()
    return BaseShape(
        hidden=known.hidden,
        layers=known.layers,
        heads=config.num_attention_heads,
        kv_heads=known.kv_heads,
        head_width=known.head_width,
        vocabulary=known.vocabulary,
        is_tied=bool(config.tie_word_embeddings),
        table=known.table_site.name,
        sites=tuple(SiteShape(name=s.name, width_in=s.width_in, width_out=s.width_out) for s in known.sites),
        value_bytes=model.dtype.itemsize,
    )
