"""Every kind of LoRA against stock peft: what we wrote it computes, what it wrote we compute."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_peft_files import WORDS, ours, theirs

from core import peft_files
from core.model import RoutedModel, Rows
from core.peft_low_rank import ranks_and_alphas
from core.routing import Routing


def stirred(lora):
    """As if trained: every parameter a little elsewhere."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return lora


def asked(kind, facts):
    """The spec of one kind for one base model."""
    first, last = facts.sites[0].name, facts.sites[-1].name.rpartition(".")[2]
    return {
        "patterns": {"r": 3, "rank_pattern": {last: 5, first: 2}, "alpha_pattern": {first: 11.0}},
        "rslora patterns": {"use_rslora": True, "rank_pattern": {last: 5}, "alpha_pattern": {last: 3.0}},
        "dora": {"use_dora": True, "r": 3},
        "pissa": {"init_lora_weights": "pissa", "r": 3},
        "olora, rslora": {"init_lora_weights": "olora", "use_rslora": True, "rank_pattern": {first: 2}},
        "dora from pissa": {"init_lora_weights": "pissa", "use_dora": True},
        "embeddings": {"target_modules": (facts.table_site.name.rpartition(".")[2], first), "r": 5},
    }[kind]


KINDS = ["patterns", "rslora patterns", "dora", "pissa", "olora, rslora", "dora from pissa", "embeddings"]


@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_computes_what_we_wrote(family, kind, tmp_path, *, new_base, new_facts, new_lora):
    facts = new_facts(family)
    lora = stirred(new_lora(facts, **asked(kind, facts)))
    peft_files.write(lora, tmp_path, "a-base")
    model = RoutedModel(new_base(family))
    stock = theirs(PeftModel.from_pretrained(new_base(family), tmp_path))
    assert (stock - ours(model, lora.effect())).abs().max() < 1e-5
    assert (stock - ours(model, None)).abs().max() > 1e-3
    served = model.resident(peft_files.read(tmp_path))
    assert (stock - ours(model, served)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": None},
        {"target_modules": "all-linear", "init_lora_weights": "gaussian", "use_rslora": True},
    ],
    ids=["dora", "embeddings", "gaussian"],
)
def test_what_stock_peft_wrote_we_compute(family, config, tmp_path, new_base, new_facts):
    facts = new_facts(family)
    targets = config["target_modules"] or [facts.table_site.name, facts.sites[1].name]
    torch.manual_seed(1)
    stock = get_peft_model(new_base(family), LoraConfig(r=3, lora_alpha=5, **(config | {"target_modules": targets})))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for name, parameter in stock.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    stock.save_pretrained(tmp_path)
    stock = theirs(PeftModel.from_pretrained(new_base(family), tmp_path))
    model = RoutedModel(new_base(family))
    served = model.resident(peft_files.read(tmp_path))
    assert (stock - ours(model, served)).abs().max() < 1e-5
    assert (stock - ours(model, None)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_doras_gradients_are_stock_pefts(family, new_base, new_facts, new_lora, tmp_path):
    lora = stirred(new_lora(new_facts(family), use_dora=True, r=3))
    peft_files.write(lora, tmp_path, "a-base")
    model, stock = (
        RoutedModel(new_base(family)),
        PeftModel.from_pretrained(new_base(family), tmp_path, is_trainable=True),
    )
    weights = torch.randn(len(WORDS), 99, generator=torch.Generator().manual_seed(5))
    with model.wearing(Routing.of_rows([lora.effect()])):
        (model.logits(model(Rows.of([WORDS]))) * weights).sum().backward()
    (stock(torch.tensor([WORDS])).logits[0] * weights).sum().backward()
    grads = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    kinds = {"lora_A.default.weight": lora.a, "lora_B.default.weight": lora.b}
    for end, mine in (kinds | {"lora_magnitude_vector.default.weight": lora.magnitude}).items():
        for site, parameter in zip(lora.sites, mine, strict=True):
            expected = grads[f"base_model.model.{site.name}.{end}"]
            assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-6


def test_a_norm_of_the_base_weight_alone_would_show(new_base, new_facts, new_lora):
    """The negative control: a magnitude is held against the norm with the update in it, not the base model's."""
    model = RoutedModel(new_base())
    lora = stirred(new_lora(new_facts(), use_dora=True))
    effect = lora.effect()
    here = ours(model, effect)
    effect.norm.update({name: lora._weight(name).norm(dim=1) for name in effect.norm})
    assert (ours(model, effect) - here).abs().max() > 1e-3


def test_a_scale_by_the_common_rank_would_show(new_base, new_facts, new_lora):
    """The negative control: a layer of its own rank has its own scale."""
    model, lora = RoutedModel(new_base()), stirred(new_lora(new_facts(), rank_pattern={"q_proj": 9}))
    effect = lora.effect()
    assert set(effect.scale.values()) == {8 / 9, 8 / 4}
    here = ours(model, effect)
    effect.scale.update(dict.fromkeys(effect.scale, 8 / 4))
    assert (ours(model, effect) - here).abs().max() > 1e-3


def test_the_commonest_rank_stands_by_itself_and_others_by_their_whole_names():
    told = ranks_and_alphas({"x.q": 4, "x.k": 8, "x.v": 8}, {"x.q": 16.0, "x.k": 16.0, "x.v": 3.0})
    assert told == {"r": 8, "lora_alpha": 16.0, "rank_pattern": {"x.q": 4}, "alpha_pattern": {"x.v": 3.0}}
