"""How many numbers an adapter learns, keeps and writes, by its method's spec and its base's shape alone. No torch."""

from collections.abc import Callable

from core.specs.estimate import BaseShape, SiteShape
from core.specs.method import (
    AdaLoraSpec,
    LoraSpec,
    MethodSpec,
    PrefixTuningSpec,
    PromptTuningSpec,
    PTuningSpec,
)

Worn = tuple[SiteShape, int]  # a site, and the rank of its update


def worn_sites(shape: BaseShape, method: MethodSpec) -> list[Worn]:
    """The layers that a low-rank method changes. Raises ValueError for a name that no layer of this base answers to."""
    match method:
        case LoraSpec():
            pattern = method.rank_pattern
            return [(site, _rank(site.name, pattern, method.r)) for site in _named(shape, method.target_modules)]
        case AdaLoraSpec():
            return [(site, method.init_r) for site in _named(shape, method.target_modules)]
    return []


def trained_parameters(shape: BaseShape, method: MethodSpec) -> int:
    """What the optimiser moves.

    LoRA R (I + O) a site, and O with DoRA; AdaLoRA R (I + O + 1); prompts P H each; a prefix 2 L P K D, or what its
    MLP has, or L P H; P-tuning its seeds and its encoder.
    """
    match method:
        case LoraSpec():
            magnitude = int(method.use_dora)
            return sum(
                r * (site.width_in + site.width_out) + magnitude * site.width_out
                for site, r in worn_sites(shape, method)
            )
        case AdaLoraSpec():
            return sum(r * (site.width_in + site.width_out + 1) for site, r in worn_sites(shape, method))
        case PrefixTuningSpec():
            return _PREFIXES[method.parametrization](shape, method)
        case PromptTuningSpec():
            return method.ensemble_size * method.num_virtual_tokens * shape.hidden
        case PTuningSpec():
            return _encoder(shape, method)


def kept_parameters(shape: BaseShape, method: MethodSpec) -> int:
    """Numbers in fp32 that a method keeps beside what it trains: its start, or how much each entry mattered."""
    match method:
        case LoraSpec(init_lora_weights="pissa" | "olora"):
            return sum(r * (site.width_in + site.width_out) for site, r in worn_sites(shape, method))
        case AdaLoraSpec():
            return 2 * trained_parameters(shape, method)
    return 0


def written_parameters(shape: BaseShape, method: MethodSpec) -> tuple[int, int]:
    """Numbers in the adapter's file, and its tensors. AdaLoRA's is of the mean rank that is left to a layer."""
    worn = worn_sites(shape, method)
    match method:
        case LoraSpec():
            times = 2 if method.init_lora_weights in ("pissa", "olora") else 1  # held against its start
            numbers = sum(times * r * (s.width_in + s.width_out) + method.use_dora * s.width_out for s, r in worn)
            return numbers, (3 if method.use_dora else 2) * len(worn)
        case AdaLoraSpec(export_as="adalora"):
            return sum(r * (s.width_in + s.width_out + 1) for s, r in worn), 4 * len(worn)
        case AdaLoraSpec():
            return sum(method.target_r * (s.width_in + s.width_out) for s, _ in worn), 2 * len(worn)
        case PrefixTuningSpec():
            return _pairs(shape, method), 1
        case PromptTuningSpec():
            return trained_parameters(shape, method), method.ensemble_size
        case PTuningSpec():
            return method.row_template.num_virtual_tokens * shape.hidden, 1


def _named(shape: BaseShape, wanted: str | tuple[str, ...]) -> list[SiteShape]:
    """The rule of core/base/facts.py: a name, or its end after a dot."""
    if wanted == "all-linear":
        return list(shape.sites)
    names = (wanted,) if isinstance(wanted, str) else wanted
    sites = (*shape.sites, SiteShape(name=shape.table, width_in=shape.vocabulary, width_out=shape.hidden))
    missing = [name for name in names if not any(_answers(site.name, name) for site in sites)]
    if missing:
        known = sorted({site.name.rpartition(".")[2] for site in sites})
        raise ValueError(f"no layer named {sorted(missing)}; this base model has {known}")
    return [site for site in sites if any(_answers(site.name, name) for name in names)]


def _answers(site: str, name: str) -> bool:
    return site == name or site.endswith("." + name)


def _rank(site: str, pattern: dict[str, int], default: int) -> int:
    longest = max((name for name in pattern if _answers(site, name)), key=len, default=None)
    return default if longest is None else pattern[longest]


def _pairs(shape: BaseShape, method: PrefixTuningSpec) -> int:
    return 2 * shape.layers * method.num_virtual_tokens * shape.kv_heads * shape.head_width


def _mlp(shape: BaseShape, method: PrefixTuningSpec) -> int:
    inner, out = method.encoder_hidden_size, 2 * shape.layers * shape.kv_heads * shape.head_width
    return method.num_virtual_tokens * shape.hidden + inner * (shape.hidden + 1) + out * (inner + 1)


def _states(shape: BaseShape, method: PrefixTuningSpec) -> int:
    return shape.layers * method.num_virtual_tokens * shape.hidden


_PREFIXES: dict[str, Callable[[BaseShape, PrefixTuningSpec], int]] = {"kv": _pairs, "mlp": _mlp, "hidden": _states}


def _encoder(shape: BaseShape, method: PTuningSpec) -> int:
    hidden = shape.hidden
    width = hidden // 2 if method.encoder_hidden_size == "auto" else method.encoder_hidden_size
    seeds = method.row_template.num_virtual_tokens * hidden
    last = hidden * (2 * width + 1)
    if method.encoder_reparameterization_type == "MLP":
        return seeds + 2 * width * (hidden + 1) + last
    inputs = [hidden] + [2 * width] * (method.encoder_num_layers - 1)
    # Each direction has four gates, each with weights of input and state and two biases.
    lstm = sum(2 * 4 * width * (width_in + width + 2) for width_in in inputs)
    return seeds + lstm + 2 * width * (2 * width + 1) + last
