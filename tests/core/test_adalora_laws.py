"""AdaLoRA in the forward, on disk and in a run: every family, and stock peft beside it."""

import json
from dataclasses import replace

import pytest
import torch
from adalora_runs import new_adalora, pruned, stirred
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_laws import apart, gradients, logits, text
from test_peft_files import ours, theirs
from token_rows import facts_of_routed, random_corpus, spec

from core import peft_files
from core.methods.adalora import AdaLora
from core.model import RoutedModel
from core.run import Run
from core.specs.method import AdaLoraSpec
from core.trainer import train


def test_without_gradients_only_kept_triplets_are_in_the_effect_and_both_say_the_same(llama, new_facts):
    method, row = pruned(new_facts()), text(12, 1)
    live = method.effect()
    with torch.no_grad():
        kept = method.effect()
    assert {a.shape[0] for a in live.a.values()} == {6}
    assert {name: a.shape[0] for name, a in kept.a.items()} == {n: r for n, r in method.ranks().items() if r}
    assert apart(logits(llama, [live], [row])[0], logits(llama, [kept], [row])[0]) < 1e-5


def test_two_trained_in_one_batch_get_the_gradients_they_would_get_alone(model, family, new_facts):
    methods = [stirred(new_adalora(new_facts(family), seed=1)), stirred(new_adalora(new_facts(family), init_r=4))]
    rows = [text(14, 1), text(9, 2)]
    for method, row, here in zip(methods, rows, gradients(model, methods, rows), strict=True):
        for a, b in zip(here, gradients(model, [method], [row])[0], strict=True):
            assert apart(a, b) <= 1e-5 * b.abs().max().item() + 1e-6
            assert b.abs().max() > 0


def empty_one_site(method):
    method.triplets[2].keep(torch.zeros(6, dtype=torch.bool))
    return method


@torch.no_grad()
def exported(family, folder, write, new_facts):
    method = empty_one_site(pruned(new_facts(family)))
    write(method, folder, "a-base")
    return method


@pytest.mark.parametrize("write", [peft_files.write, peft_files.write_adalora], ids=["as LORA", "as ADALORA"])
def test_stock_peft_computes_what_we_wrote_either_way(family, write, tmp_path, *, new_base, new_facts):
    method = exported(family, tmp_path, write, new_facts)
    model = RoutedModel(new_base(family))
    here = ours(model, method.effect())  # masked, not cut: the triplets are all there
    stock = theirs(PeftModel.from_pretrained(new_base(family), tmp_path))
    assert apart(stock, here) < 1e-5
    assert apart(here, ours(model, None)) > 1e-3
    read = peft_files.read(tmp_path)
    model.check(read)
    assert apart(ours(model, read), here) < 1e-5
    assert method.sites[2].name not in read.a


def test_a_job_may_ask_for_the_file_by_peft_s_own_name(family, tmp_path, new_base, new_facts):
    with torch.no_grad():
        method = empty_one_site(pruned(new_facts(family), export_as="adalora"))
        here = ours(RoutedModel(new_base(family)), method.effect())
    peft_files.write(method, tmp_path, "a-base")
    assert json.loads((tmp_path / peft_files.CONFIG).read_text())["peft_type"] == "ADALORA"
    assert apart(theirs(PeftModel.from_pretrained(new_base(family), tmp_path)), here) < 1e-5


def test_a_scale_by_the_rank_of_now_would_show(llama, new_facts):
    """The negative control of the scale: alpha is divided by init_r for the whole run."""
    method = pruned(new_facts())
    with torch.no_grad():
        effect = method.effect()
    here = ours(llama, effect)
    by_rank = {name: 12.0 / a.shape[0] for name, a in effect.a.items()}
    assert apart(ours(llama, replace(effect, scale=by_rank)), here) > 1e-3


def test_an_untrained_one_is_read_by_stock_peft_under_its_own_name(tmp_path, new_base, new_facts):
    peft_files.write_adalora(stirred(new_adalora(new_facts())), tmp_path, "a-base")
    config = PeftModel.from_pretrained(new_base(), tmp_path).peft_config["default"]
    assert config.tinit < config.total_step - config.tfinal


def test_what_stock_peft_wrote_by_that_name_we_compute(family, tmp_path, new_base, new_facts):
    names = [site.name for site in new_facts(family).sites]
    stock = get_peft_model(
        new_base(family),
        AdaLoraConfig(init_r=5, lora_alpha=9, total_step=9, target_modules=names, task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    stock.save_pretrained(tmp_path)
    model = RoutedModel(new_base(family))
    assert apart(theirs(stock.eval()), ours(model, peft_files.read(tmp_path))) < 1e-5


K = "base_model.model.model.layers.0.self_attn.k_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "reason"),
    [
        ({"use_dora": True, "bias": "all"}, {}, "bias 'all'"),
        ({"a_variant_of_tomorrow": 1}, {}, "a_variant_of_tomorrow"),
        ({"init_r": 0}, {}, "init_r 0.0 is not at least 1"),
        ({"lora_dropout": 2}, {}, "lora_dropout 2.0"),
        ({}, {f"{K}.lora_A": None}, "missing of .*k_proj"),
        ({}, {f"{K}.lora_E": torch.zeros(9, 1)}, "share no rank"),
        ({}, {f"{K}.lora_C": torch.zeros(9, 1)}, "not understood: .*lora_C"),
    ],
)
def test_a_folder_that_means_more_is_refused(config, tensors, reason, tmp_path, new_facts):
    peft_files.write_adalora(pruned(new_facts()), tmp_path, "a-base")
    told, weights = tmp_path / peft_files.CONFIG, tmp_path / peft_files.WEIGHTS
    told.write_text(json.dumps(json.loads(told.read_text()) | config))
    save_file({name: t for name, t in (load_file(weights) | tensors).items() if t is not None}, weights)
    with pytest.raises(ValueError, match=reason):
        peft_files.read(tmp_path)


def new_run(model, seed=11):
    method = AdaLoraSpec(init_r=4, target_r=2, tinit=2, tfinal=4)
    chosen = spec(n_epochs=4).model_copy(update={"method": method, "seed": seed})
    generator = torch.Generator().manual_seed(seed)
    return Run(chosen, AdaLora(method, facts_of_routed(model), generator=generator), random_corpus(10))


def test_loaded_after_any_step_it_ends_with_the_same_bits(llama):
    whole = new_run(llama)
    states = []
    for _ in train(llama, [whole]):
        tensors, facts = whole.state()
        states.append(({name: tensor.clone() for name, tensor in tensors.items()}, facts))
    assert sum(whole.method.ranks().values()) == 2 * len(whole.method.sites)
    assert len(set(whole.method.ranks().values())) > 1
    for tensors, facts in states:
        again = new_run(llama)
        again.load(tensors, facts)
        list(train(llama, [again]))
        for (name, expected), here in zip(whole.state()[0].items(), again.state()[0].values(), strict=True):
            assert torch.equal(here, expected), name


def test_an_average_that_was_lost_would_show_in_the_bits(llama):
    whole, stopped, again = (new_run(llama) for _ in range(3))
    list(train(llama, [whole]))
    steps = train(llama, [stopped])
    for _ in range(4):
        next(steps)
    tensors, facts = stopped.state()
    lost = {name: torch.rand_like(t) if "sensitivity" in name else t for name, t in tensors.items()}
    again.load(lost, facts)
    list(train(llama, [again]))
    assert again.method.ranks() != whole.method.ranks()
