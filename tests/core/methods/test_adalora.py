"""AdaLoRA as a method: its budget, what it prunes and why, and that stock peft prunes the same."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from adalora_runs import new_adalora, pruned, stirred, with_gradients
from peft import AdaLoraConfig, get_peft_model
from test_laws import logits, text

from core.methods import METHODS
from core.methods.adalora import Budget
from core.specs.method import AdaLoraSpec

GOLDEN = [54, 54, 54, 44, 36, 32, 29, 27, 27, 27, 27, 27]  # 9 modules, 6 to 3, T 12, t_i 2, t_f 3


def living(method):
    return int(sum(int((t.e != 0).sum()) for t in method.triplets))


def nine_sites(facts):
    return replace(facts, sites=facts.sites[:9])


def test_it_is_among_the_methods_and_counts_rank_times_inputs_outputs_and_one(new_facts):
    facts = new_facts()
    method = METHODS["adalora"](AdaLoraSpec(init_r=4, target_r=2, target_modules=("q_proj", "down_proj")), facts)
    assert sum(p.numel() for p in method.parameters()) == 2 * 4 * ((64 + 64 + 1) + (96 + 64 + 1))
    assert all(p.dtype == torch.float32 for p in method.parameters())
    assert METHODS["adalora"](AdaLoraSpec(base_precision="nf4"), facts).base_precision == "nf4"


def test_it_starts_at_nothing_with_p_and_q_of_deviation_0_02(new_facts):
    method = new_adalora(new_facts())
    assert living(method) == 0
    for side in ("p", "q"):
        drawn = torch.cat([getattr(t, side).flatten() for t in method.triplets])
        assert drawn.std().item() == pytest.approx(0.02, rel=0.05)


def test_an_untrained_one_changes_no_bit(model, family, new_facts):
    row, method = text(12, 1), new_adalora(new_facts(family))
    bare = logits(model, [None], [row])[0]
    assert torch.equal(logits(model, [method.effect()], [row])[0], bare)
    assert not torch.equal(logits(model, [stirred(method).effect()], [row])[0], bare)


def test_the_budget_and_what_is_left_are_those_of_the_golden_run(new_facts):
    method = stirred(new_adalora(nine_sites(new_facts()), tinit=2, tfinal=3))
    assert len(method.sites) == 9
    assert [method.budget(12).after(step) for step in range(12)] == GOLDEN
    left = []
    for step in range(13):  # step 0 and 1 stand before the first prune; the last is the run's own end
        stirred(with_gradients(method, step), seed=100 + step)
        method.after_step(step, 12)
        left.append(living(method))
    assert left == [*GOLDEN, 27]
    assert sum(method.ranks().values()) == 27


def test_the_papers_own_equation_would_start_above_the_first_budget():
    """The negative control: equation 14 as printed subtracts t_f once too often."""
    step, tinit, tfinal, of = 3, 2, 3, 12
    assert 27 + 27 * (1 - (step - tinit - tfinal) / (of - tinit - tfinal)) ** 3 > 54
    assert Budget(54, 27, tinit, of - tfinal, 1).after(step) == 44


@pytest.mark.parametrize("of", [1, 2, 3, 5, 10, 33])
def test_a_run_of_any_length_ends_at_its_target(of, new_facts):
    method = pruned(nine_sites(new_facts()), of=of)
    assert (living(method), sum(method.ranks().values())) == (27, 27)


@pytest.mark.parametrize("every", [1, 2])
def test_scores_masks_and_weights_are_stock_pefts_step_by_step(every, new_base, new_facts):
    of, schedule = 12, {"tinit": 2, "tfinal": 3, "deltaT": every}
    facts = new_facts()
    names = [site.name for site in facts.sites]
    config = AdaLoraConfig(
        init_r=6, target_r=3, lora_alpha=12, total_step=of, beta1=0.85, beta2=0.7, target_modules=names, **schedule
    )
    stock = get_peft_model(new_base(), config).base_model
    mine = stirred(new_adalora(facts, official_ties=True, beta1=0.85, beta2=0.7, **schedule))
    layers = {name: stock.model.get_submodule(name) for name in names}
    pairs = [
        (getattr(t, side), getattr(layers[site.name], f"lora_{kind}")["default"])
        for site, t in zip(mine.sites, mine.triplets, strict=True)
        for side, kind in (("e", "E"), ("q", "A"), ("p", "B"))
    ]
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    optimisers = [torch.optim.AdamW([pair[which] for pair in pairs], lr=0.03) for which in (0, 1)]
    masks = []
    for step in range(1, of + 1):
        with_gradients(mine, step)
        for own, other in pairs:
            other.grad = own.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
        mine.after_step(step, of)
        stock.update_and_allocate(step)
        if step < of - 3:
            for site, t in zip(mine.sites, mine.triplets, strict=True):
                score = {kind: stock.rankallocator._element_score(f"{site.name}.lora_{kind}.default") for kind in "AEB"}
                expected = score["E"][:, 0] + (score["A"].mean(1) + score["B"].mean(0))
                assert torch.equal(t.scores(), expected)
        assert all(torch.equal(own, other) for own, other in pairs)
        masks.append(torch.cat([t.e != 0 for t in mine.triplets])[:, 0])
        if step >= 4:
            pattern = config.rank_pattern
            kept = torch.cat([torch.tensor(pattern[f"{name}.lora_E.default"]) for name in names])
            assert torch.equal(torch.cat([t.kept for t in mine.triplets]), kept)
    assert masks[-1].sum() == 3 * len(names)
    came_back = [(~a & b).any() for a, b in pairwise(masks)]
    assert any(came_back)  # a pruned triplet may return, before the ranks rest
    assert not any(came_back[8:])


def test_of_equals_the_first_stay_and_the_authors_code_lets_all_of_them_go(new_facts):
    left = []
    for official in (False, True):
        method = stirred(new_adalora(nine_sites(new_facts()), tinit=0, tfinal=0, official_ties=official))
        for t in method.triplets:
            t.scores = lambda: torch.ones(6)
        method.after_step(1, 1)
        left.append(living(method))
    assert left == [27, 0]


def test_equal_ranks_prune_nothing(new_facts):
    method = pruned(nine_sites(new_facts()), target_r=6)
    assert living(method) == 54


def test_what_is_pruned_stays_at_zero_to_the_end_though_the_optimiser_moves_it(new_facts):
    method = pruned(nine_sites(new_facts()), of=20)
    with torch.no_grad():
        for t in method.triplets:
            t.e += 1.0
    assert living(method) == 54
    method.after_step(20, 20)
    assert living(method) == 27


def test_a_last_allocation_whose_step_was_skipped_is_made_at_the_next(new_facts):
    method = stirred(new_adalora(nine_sites(new_facts()), tinit=2, tfinal=3))
    for step in (1, 2, 3, 4, 11):
        stirred(with_gradients(method, step), seed=step)
        method.after_step(step, 12)
    assert living(method) == 27


def test_gradients_that_are_gone_are_missed(new_facts):
    with pytest.raises(RuntimeError, match="gradients were gone"):
        new_adalora(new_facts()).after_step(1, 10)


def test_a_schedule_without_a_step_to_prune_in_is_refused(new_facts):
    with pytest.raises(ValueError, match="tinit 8 and tfinal 3 leave none of the 11 steps"):
        with_gradients(new_adalora(new_facts(), tinit=8), 1).after_step(1, 11)


@pytest.mark.parametrize("form", ["norm", "squared"])
def test_the_penalty_is_how_far_p_and_q_are_from_orthogonal(form, new_base, new_facts):
    facts = new_facts()
    method = stirred(new_adalora(facts, orthogonality=form, orth_reg_weight=0.3))
    norms = [
        (gram - torch.eye(6)).square().sum().sqrt() for t in method.triplets for gram in (t.p.T @ t.p, t.q @ t.q.T)
    ]
    expected = sum(norms) / len(norms) if form == "norm" else sum(n**2 for n in norms)
    assert method.penalty().item() == pytest.approx(0.3 * expected.item(), rel=1e-5)
    method.penalty().backward()
    assert all(t.p.grad.abs().max() > 0 and t.e.grad is None for t in method.triplets)
    assert new_adalora(facts, orth_reg_weight=0).penalty().item() == 0
    if form == "norm":
        assert method.penalty().item() == pytest.approx(stock_penalty(new_base(), method), rel=1e-5)


def stock_penalty(base, method):
    """What stock peft adds to the loss."""
    names = [site.name for site in method.sites]
    stock = get_peft_model(
        base, AdaLoraConfig(init_r=6, total_step=9, target_modules=names, orth_reg_weight=0.3, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for site, t in zip(method.sites, method.triplets, strict=True):
            layer = stock.base_model.model.get_submodule(site.name)
            layer.lora_A["default"].copy_(t.q)
            layer.lora_B["default"].copy_(t.p)
    ids = torch.tensor([[5, 6, 7]])
    with_it = stock(ids, labels=ids).loss
    stock.peft_config["default"].orth_reg_weight = 0.0
    return (with_it - stock(ids, labels=ids).loss).item()
