"""From which adapters a method can go on: from those whose file holds what it trains."""

from core.specs.method import (
    AdaLoraSpec,
    LoraSpec,
    MethodSpec,
    PrefixTuningSpec,
    PromptTuningSpec,
    PTuningSpec,
)


def kind_left_by(method: MethodSpec) -> str:
    """The peft_type of the adapter that a run of this method leaves."""
    match method:
        case PTuningSpec():
            return "PROMPT_TUNING" if method.row_template.is_in_front else "TRAINABLE_TOKENS"
        case PrefixTuningSpec():
            return "PREFIX_TUNING"
        case PromptTuningSpec():
            return "PROMPT_TUNING"
        case LoraSpec() | AdaLoraSpec():
            return "LORA"


def must_continue(method: MethodSpec, peft_type: str) -> None:
    """Raise ValueError, which says what to do, if the method cannot go on from an adapter of this kind."""
    if obstacle := _obstacle(method):
        raise ValueError(obstacle)
    if peft_type != kind_left_by(method):
        raise ValueError(f"{method.type} goes on from a {kind_left_by(method)} adapter, and this one is {peft_type}")


def continued(method: MethodSpec) -> MethodSpec:
    """The method without a start of its own from another adapter, which going on makes idle."""
    if method.starts_from is None:
        return method
    return method.model_copy(update={"prompt_tuning_init": "random", "init_adapter": None})


def _obstacle(method: MethodSpec) -> str | None:
    match method:
        case AdaLoraSpec():
            return (
                "adalora cannot go on from an adapter: its file holds neither what was pruned nor how much each part "
                "matters; use lora with the adapter's ranks as rank_pattern"
            )
        case PTuningSpec():
            return (
                "p_tuning cannot go on from an adapter: its file holds the prompt, not the encoder that made it; use "
                "prompt_tuning where the virtual tokens stand in front"
            )
        case PrefixTuningSpec() if method.parametrization != "kv":
            return (
                f"prefix_tuning by {method.parametrization!r} cannot go on from an adapter: its file holds keys and "
                "values, not what made them; use parametrization 'kv'"
            )
        case LoraSpec() if method.init_lora_weights in ("pissa", "olora"):
            return (
                f"init_lora_weights {method.init_lora_weights!r} cannot go on from an adapter: it is a start from the "
                "base model's weights; use 'kaiming', with twice the r if that adapter began so"
            )
        case _:
            return None
