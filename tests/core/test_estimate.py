"""What is foretold of a run: its sizes exactly, its memory by terms that add up, and the knob that makes it fit."""

import pytest
import torch
from pydantic import TypeAdapter

from core.adapter_sizes import trained_parameters, worn_sites, written_parameters
from core.base.facts import facts_of
from core.base.shape import shape_of
from core.effects import KVPrefix, LowRank, SoftPrompt, members_of
from core.estimate import FEWEST_TOKENS, after_probe, estimate, memory_of, memory_range
from core.measured_constants import CONSTANTS
from core.methods import METHODS
from core.model import RoutedModel
from core.reading import with_reading
from core.specs.estimate import Amount, BaseShape, Device, Largest, SiteShape
from core.specs.method import LoraSpec, MethodSpec
from core.specs.training import HyperparametersRequest, TrainingRequest, resolve

SPECS = TypeAdapter(MethodSpec)
METHODS_TRIED = [
    {"type": "lora", "r": 4},
    {"type": "lora", "r": 4, "use_dora": True},
    {"type": "lora", "r": 4, "init_lora_weights": "pissa"},
    {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2}},
    {"type": "lora", "r": 2, "target_modules": ["embed_tokens", "down_proj"]},
    {"type": "adalora", "init_r": 4, "target_r": 2},
    {"type": "prefix_tuning", "num_virtual_tokens": 3, "parametrization": "kv"},
    {"type": "prefix_tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 16},
    {"type": "prefix_tuning", "num_virtual_tokens": 3, "parametrization": "hidden"},
    {"type": "prompt_tuning", "num_virtual_tokens": 5, "prompt_tuning_init": "random", "ensemble_size": 2},
    {"type": "p_tuning", "template": "{v:3}{input}{v:2}{target}"},
    {"type": "p_tuning", "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 8},
]
LARGEST = Largest(tokens=2048, learned=1100, squares=2048 * 256, longest_row=256)
AMOUNT = Amount(tokens=100_000, learned_tokens=55_000, n_examples=500, largest=LARGEST, validation_tokens=4000)
SMOL = BaseShape(
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_width=64,
    vocabulary=49_152,
    is_tied=True,
    table="model.embed_tokens",
    sites=tuple(
        SiteShape(name=f"model.layers.{layer}.{name}", width_in=i, width_out=o)
        for layer in range(30)
        for name, i, o in (("self_attn.q_proj", 576, 576), ("self_attn.k_proj", 576, 192), ("mlp.up_proj", 576, 1536))
    ),
    value_bytes=2,
)


def spec_of(method=None, **training):
    return resolve(
        base_model="tiny",
        context=2048,
        method=SPECS.validate_python(method or {"type": "lora"}),
        hyperparameters=HyperparametersRequest(batch_size=8, n_epochs=3),
        training=TrainingRequest(**training),
        seed=1,
        n_examples=AMOUNT.n_examples,
    )


@pytest.fixture
def opened(new_base):
    base = new_base("llama")
    facts, shape = facts_of(base), shape_of(base)
    return shape, with_reading(facts, RoutedModel(base))


@pytest.mark.parametrize("method", METHODS_TRIED, ids=lambda m: "-".join(str(v) for v in m.values())[:40])
def test_the_numbers_foretold_are_those_of_the_method_itself(opened, method):
    shape, facts = opened
    spec = SPECS.validate_python(method)
    made = METHODS[spec.type](spec, facts, generator=torch.Generator().manual_seed(0))
    assert trained_parameters(shape, spec) == sum(p.numel() for p in made.parameters())
    numbers = 0
    for member in members_of(made.effect()):
        match member:
            case LowRank(a=a, b=b, magnitude=magnitude):
                numbers += sum(t.numel() for side in (a, b, magnitude) for t in side.values())
            case SoftPrompt(prompt=prompt):
                numbers += prompt.numel()
            case KVPrefix(keys=keys, values=values):
                numbers += keys.numel() + values.numel()
    written = numbers if spec.type != "adalora" else numbers * spec.target_r // spec.init_r
    assert written_parameters(shape, spec)[0] == written


def test_another_rank_has_other_numbers(opened):
    """The negative control of that law."""
    shape, _ = opened
    assert trained_parameters(shape, LoraSpec(r=4)) != trained_parameters(shape, LoraSpec(r=5))


def test_a_layer_that_is_not_there_is_named(opened):
    with pytest.raises(ValueError, match="no layer named"):
        worn_sites(opened[0], LoraSpec(target_modules=("nowhere",)))


def test_tokens_and_steps_are_counted():
    found = estimate(SMOL, spec_of(), AMOUNT, None)
    assert (found.steps, found.tokens, found.learned_tokens) == (63 * 3, 300_000, 165_000)
    assert (found.fits, found.advice, found.device) == (None, (), None)


def test_the_terms_of_memory_add_up_and_each_answers_to_its_own_knob():
    plain = estimate(SMOL, spec_of(), AMOUNT, None).memory
    terms = plain.model_dump()
    total = terms.pop("total")
    assert total == sum(terms.values())
    four_bits = estimate(SMOL, spec_of({"type": "qlora"}), AMOUNT, None).memory
    assert four_bits.base_weights < plain.base_weights
    assert four_bits.activations == plain.activations
    library = CONSTANTS["cpu"].bitsandbytes
    assert four_bits.process == estimate(SMOL, spec_of(optimizer="adamw_8bit"), AMOUNT, None).memory.process
    assert four_bits.process == pytest.approx(plain.process + library, abs=1)
    assert estimate(SMOL, spec_of(optimizer="paged_adamw_32bit"), AMOUNT, None).memory.process == plain.process
    light = estimate(SMOL, spec_of(optimizer="adafactor"), AMOUNT, None).memory
    assert light.adapter < 0.6 * plain.adapter
    assert light.base_weights == plain.base_weights
    fewer = AMOUNT.model_copy(update={"largest": LARGEST.model_copy(update={"tokens": 1024})})
    assert estimate(SMOL, spec_of(), fewer, None).memory.activations < plain.activations


def test_earlier_jobs_say_how_long_it_takes_and_narrow_the_range():
    guessed = estimate(SMOL, spec_of(), AMOUNT, None)
    known = estimate(SMOL, spec_of(), AMOUNT, None, tokens_per_s=1000.0)
    assert (guessed.seconds_basis, known.seconds_basis) == ("default", "jobs")
    assert known.seconds == pytest.approx(CONSTANTS["cpu"].opening_s + 300 + 3 * 4000 / 3 / 1000, rel=0.01)
    assert known.seconds_range[0] < known.seconds < known.seconds_range[1]
    width = [found.seconds_range[1] / found.seconds_range[0] for found in (guessed, known)]
    assert width[1] < width[0]


def test_a_run_that_does_not_fit_is_told_which_knob_alone_makes_it_fit():
    whole = estimate(SMOL, spec_of(), AMOUNT, None).memory
    device = Device(memory_bytes=memory_range(whole.total)[0] - 1)
    found = estimate(SMOL, spec_of(), AMOUNT, device)
    assert found.fits is False
    again, tokens, *_ = found.advice
    assert (again.param, again.value) == ("training.activation_checkpointing", True)
    assert estimate(SMOL, spec_of(activation_checkpointing=True), AMOUNT, device).fits is True
    assert tokens.param == "training.tokens_per_batch"
    assert FEWEST_TOKENS <= tokens.value < LARGEST.tokens
    assert all(advised.memory_bytes <= device.memory_bytes for advised in found.advice)
    smaller = _cut_to(tokens.value)
    turned = spec_of(tokens_per_batch=tokens.value)
    assert estimate(SMOL, turned, smaller, device).fits is True


def test_where_nothing_helps_nothing_is_advised():
    found = estimate(SMOL, spec_of(), AMOUNT, Device(memory_bytes=1 << 20))
    assert (found.fits, found.advice) == (False, ())


def test_a_probe_of_the_largest_batch_is_the_answer_and_a_smaller_one_is_added_to():
    spec, known = spec_of(), CONSTANTS["cpu"]
    assert after_probe(SMOL, spec, AMOUNT, AMOUNT, 10**9) == 10**9
    more = memory_of(SMOL, spec, AMOUNT, known).total - memory_of(SMOL, spec, _cut_to(512), known).total
    assert after_probe(SMOL, spec, AMOUNT, _cut_to(512), 10**9) == 10**9 + more > 10**9


def _cut_to(tokens):
    share = tokens / LARGEST.tokens
    largest = Largest(
        tokens=tokens, learned=min(1100, tokens), squares=int(LARGEST.squares * share), longest_row=LARGEST.longest_row
    )
    return AMOUNT.model_copy(update={"largest": largest})
