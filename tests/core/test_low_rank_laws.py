"""What must hold of every kind of low-rank adapter in a batch of many: DoRA, embeddings, starts of the weight."""

import pytest
import torch
from test_laws import PRECISIONS, TOLERANCE, apart, decoded, gradients, logits, text
from test_peft_low_rank import asked, stirred

from core.base.facts import facts_of
from core.base.nf4 import quantise_linears
from core.methods import METHODS
from core.methods.lora import Lora
from core.model import RoutedModel
from core.specs.method import AdaLoraSpec, LoraSpec, QLoraSpec

KINDS = ["patterns", "dora", "pissa", "embeddings"]


def adapters(facts, new_lora):
    return [stirred(new_lora(facts, seed=n, **asked(kind, facts))) for n, kind in enumerate(KINDS)]


@PRECISIONS
def test_a_row_is_the_same_in_company_as_alone_read_whole_or_token_by_token(
    family, dtype, *, new_base, new_facts, new_lora
):
    model = RoutedModel(new_base(family, dtype))
    served = [model.resident(lora.effect()) for lora in adapters(new_facts(family), new_lora)]
    worn = [None, *served, None, served[1]]
    rows = [text(7 + 4 * i, i) for i in range(len(worn))]
    whole, late = logits(model, worn, rows), decoded(model, worn, rows)
    for effect, row, here, last in zip(worn, rows, whole, late, strict=True):
        assert apart(here, logits(model, [effect], [row])[0]) < TOLERANCE[dtype]
        assert apart(last, here[-4:]) < TOLERANCE[dtype]
    plain = logits(model, [None] * len(worn), rows)
    assert all((apart(a, b) > 1e-2) == (e is not None) for a, b, e in zip(whole, plain, worn, strict=True))


def test_a_bare_row_beside_dora_and_embeddings_is_bitwise_bare(llama, new_facts, new_lora):
    worn = [None, *(lora.effect() for lora in adapters(new_facts(), new_lora)), None]
    rows = [text(9, i) for i in range(len(worn))]
    here, bare = logits(llama, worn, rows), logits(llama, [None] * len(worn), rows)
    assert torch.equal(here[0], bare[0])
    assert torch.equal(here[-1], bare[-1])


def test_adapters_of_every_kind_trained_in_one_batch_get_the_gradients_they_would_get_alone(
    family, new_base, new_facts, new_lora
):
    model, methods = RoutedModel(new_base(family)), adapters(new_facts(family), new_lora)
    rows = [text(9 + i, i) for i in range(len(methods))]
    together = gradients(model, methods, rows)
    checkpointed = gradients(RoutedModel(new_base(family), checkpointing=True), methods, rows)
    for method, row, here, again in zip(methods, rows, together, checkpointed, strict=True):
        alone = gradients(model, [method], [row])[0]
        for a, b, c in zip(here, alone, again, strict=True):
            assert apart(a, b) <= 1e-5 * b.abs().max().item() + 1e-6
            assert torch.equal(a, c)
        assert any(g.abs().max() > 1e-3 for g in here)


@pytest.mark.parametrize("spec", [{"use_dora": True}, {"target_modules": None}, {"use_rslora": True}, {"r": 1}])
def test_an_untrained_adapter_changes_no_bit(family, spec, new_base, new_facts, new_lora):
    facts = new_facts(family)
    targets = {"target_modules": ("embed_tokens", "wte", "embed_in")} if "target_modules" in spec else {}
    targets = {k: tuple(n for n in v if facts.table_site.answers(n)) for k, v in targets.items()}
    lora = new_lora(facts, **(spec | targets))
    with torch.no_grad():
        for a, b, site in zip(lora.a, lora.b, lora.sites, strict=True):
            (a if site.is_table else b).zero_()
    model, row = RoutedModel(new_base(family)), text(12, 1)
    assert torch.equal(logits(model, [lora.effect()], [row])[0], logits(model, [None], [row])[0])


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora"])
def test_an_untrained_adapter_changes_no_bit_of_a_base_in_4_bits(family, method, new_base):
    base = new_base(family)
    quantise_linears(base, head=base.get_output_embeddings(), device=base.device, dtype=torch.float32)
    spec = {"lora": LoraSpec(use_dora=True), "qlora": QLoraSpec(), "adalora": AdaLoraSpec()}[method]
    learned = METHODS[method](spec, facts_of(base), generator=torch.Generator().manual_seed(1))
    model, row = RoutedModel(base), text(12, 1)
    bare = logits(model, [None], [row])[0]
    assert torch.equal(logits(model, [learned.effect()], [row])[0], bare)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(0.01)
    assert not torch.equal(logits(model, [learned.effect()], [row])[0], bare)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_untrained_adapter_that_starts_from_the_weight_changes_only_rounding(start, model, family, new_facts):
    lora = Lora(LoraSpec(r=8, init_lora_weights=start), new_facts(family))
    row = text(12, 1)
    bare = logits(model, [None], [row])[0]
    assert apart(logits(model, [lora.effect()], [row])[0], bare) < 1e-5
    with torch.no_grad():
        lora.get_buffer("b0_0").zero_()  # the control: without what it is held against it is no start at all
    assert apart(logits(model, [lora.effect()], [row])[0], bare) > 1e-3


def test_a_magnitude_without_its_norm_is_not_worn_but_resident(llama, new_facts, new_lora):
    effect = stirred(new_lora(new_facts(), use_dora=True)).effect()
    here = logits(llama, [effect], [text(5, 1)])[0]
    effect.norm.clear()
    assert apart(logits(llama, [llama.resident(effect)], [text(5, 1)])[0], here) < 1e-5
    with pytest.raises(KeyError):
        logits(llama, [effect], [text(5, 1)])
