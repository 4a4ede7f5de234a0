"""Tiny random base models, one of each family, and what tests ask of them."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.base.facts import BaseFacts, facts_of
from core.effects import KVPrefix, LowRank, SoftPrompt
from core.methods.lora import Lora
from core.model import RoutedModel
from core.specs.method import LoraSpec

VOCABULARY = 99
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=5),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **GROUPED, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: transformers.Phi3Config(**GROUPED, sliding_window=None),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
}
FAMILIES = sorted(CONFIGS)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tiny products gain nothing from a second thread, and two spinning threads on a busy machine lose much.
    torch.set_num_threads(1)


def make_base(family: str = "llama", dtype: torch.dtype = torch.float32, *, seed: int = 0) -> PreTrainedModel:
    """A random model, the same for the same arguments. Weights are large enough that every part of it tells."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return base.to(dtype).eval()


@pytest.fixture
def new_base() -> Callable[..., PreTrainedModel]:
    """new_base(family="llama", dtype=torch.float32, seed=0): a plain Hugging Face model, new at each call."""
    return make_base


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def model(family: str) -> RoutedModel:
    """A routed fp32 model of each family in turn."""
    return RoutedModel(make_base(family))


@pytest.fixture
def llama() -> RoutedModel:
    """A routed fp32 Llama with grouped heads."""
    return RoutedModel(make_base("llama"))


def make_lora(facts: BaseFacts, *, seed: int = 0, **spec: object) -> Lora:
    """A LoRA whose B is not zero, so that wearing it changes something."""
    generator = torch.Generator().manual_seed(seed)
    lora = Lora(LoraSpec(**({"r": 4, "lora_alpha": 8.0} | spec)), facts, generator=generator)
    with torch.no_grad():
        for b in lora.b:
            b.normal_(0, 0.05, generator=generator)
    return lora


@pytest.fixture
def new_lora() -> Callable[..., Lora]:
    """new_lora(facts, seed=0, **LoraSpec fields): a LoRA with a random B."""
    return make_lora


def make_facts(family: str = "llama") -> BaseFacts:
    """The facts of make_base(family)."""
    return facts_of(make_base(family))


@pytest.fixture
def new_facts() -> Callable[..., BaseFacts]:
    """new_facts(family="llama"): the facts of new_base(family)."""
    return make_facts


def make_effects(facts: BaseFacts, *, seed: int = 0) -> dict[str, LowRank | SoftPrompt | KVPrefix]:
    """One effect of each kind, and low-rank ones of other ranks, sites and scales."""
    generator = torch.Generator().manual_seed(seed)
    shape = (facts.layers, 3, facts.kv_heads, facts.head_width)
    few = facts.sites[1].name.rpartition(".")[2]
    with torch.no_grad():
        return {
            "rank 4": _frozen(make_lora(facts, seed=seed + 1)),
            "rank 7, few sites": _frozen(make_lora(facts, seed=seed + 2, r=7, lora_alpha=3.0, target_modules=(few,))),
            "rank 2, rslora": _frozen(make_lora(facts, seed=seed + 3, r=2, use_rslora=True)),
            "prompt": SoftPrompt(torch.randn(4, facts.hidden, generator=generator) * 0.3),
            "prefix": KVPrefix(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)),
        }


def _frozen(lora: Lora) -> LowRank:
    effect = lora.effect()
    return dataclasses.replace(
        effect, a={k: t.detach() for k, t in effect.a.items()}, b={k: t.detach() for k, t in effect.b.items()}
    )


@pytest.fixture
def new_effects() -> Callable[..., dict[str, LowRank | SoftPrompt | KVPrefix]]:
    """new_effects(facts, seed=0): effects of all three kinds by name."""
    return make_effects
