"""Opens a base model: weights, tokeniser, facts. Runs no code that came with it and asks no network for it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from core.base.catalogue import UnusableBaseModel
from core.base.facts import BaseFacts, facts_of
from core.base.nf4 import TYPE, Linear4bit, checksum, quantise_linears
from core.base.prepare import Prepared, offline, prepare
from core.base.template import ChatTemplate, UnusableTemplateError
from core.ops.nf4 import BLOCK
from core.specs.assignment import BaseModelEntry
from core.specs.method import BasePrecision

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, eq=False)
class OpenBase:
    """A frozen model in memory, in eval mode, without gradients, its attention still its own."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    facts: BaseFacts
    dtype: torch.dtype
    device: torch.device
    revision: str  # sha256 of its weights as they were given
    template_sha256: str  # of its chat template's text; of no text where it has none
    stop_ids: tuple[int, ...]  # the tokens that end an answer, ascending
    base_precision: BasePrecision = "bf16"

    @property
    def dense_bytes(self) -> int:
        """What it would take with every linear layer in the type that it computes in."""
        linears = [module for module in self.model.modules() if isinstance(module, Linear4bit)]
        others = sum(parameter.numel() for parameter in self.model.parameters())
        return (others + sum(m.in_features * m.out_features for m in linears)) * self.dtype.itemsize

    @cached_property
    def quantisation(self) -> dict[str, str | int | bool] | None:
        """How its linear layers are kept, and a checksum of what is kept; None for a base in 16 bits.

        Equal logits need the same quantised base, and an adapter's file does not say which it was.
        """
        sha256 = checksum(self.model)
        if sha256 is None:
            return None
        return {
            "type": TYPE,
            "block": BLOCK,
            "double_quant": True,
            "compute_dtype": NAMES[self.dtype],
            "base_sha256": sha256,
        }


def open_base(
    base: BaseModelEntry,
    *,
    cache_dir: Path,
    device: str = "auto",
    precision: str = "auto",
    base_precision: BasePrecision = "bf16",
) -> OpenBase:
    """Opens a catalogue entry, converting it first where that was not done before.

    device: "auto" (a GPU where there is one), "cpu", "cuda". precision, of what is computed: "auto" (bf16 where the
    device is fast at it, else fp32), "bf16", "fp32". base_precision, of what the linear layers are kept in: "nf4"
    quantises all but the head, here and now; "bf16" leaves them as they are computed with.

    Raises:
        UnusableBaseModel: its files are missing, damaged, or of a kind that is refused.
        ValueError: no such device or precision.

    """
    place = _device(device)
    dtype = _dtype(precision, place)
    prepared = prepare(base, cache_dir)
    tokenizer = _tokenizer(prepared)
    model = _model(prepared, dtype)
    if base_precision == "nf4":
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        quantise_linears(model, head=head, device=place, dtype=dtype)
    model = model.to(place)  # type: ignore[arg-type]
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise UnusableBaseModel(f"{prepared.folder}: the tokeniser has more tokens than the model has embeddings")
    return OpenBase(
        model=model,
        tokenizer=tokenizer,
        facts=facts_of(model, tokenizer),
        dtype=dtype,
        device=place,
        revision=prepared.revision,
        template_sha256=_template_sha256(tokenizer),
        stop_ids=_stop_ids(model, tokenizer),
        base_precision=base_precision,
    )


def open_tokenizer(base: BaseModelEntry, *, cache_dir: Path) -> PreTrainedTokenizerFast:
    """The tokeniser alone. Raises UnusableBaseModel, as open_base."""
    return _tokenizer(prepare(base, cache_dir))


def _model(prepared: Prepared, dtype: torch.dtype) -> PreTrainedModel:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with offline():
            # The library's annotation knows nothing of output_loading_info.
            opened: Any = AutoModelForCausalLM.from_pretrained(
                prepared.folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UnusableBaseModel(f"{prepared.folder} cannot be opened: {error}") from error
    model: PreTrainedModel = opened[0]
    if missing := sorted(opened[1]["missing_keys"]):
        # The library would go on with random numbers in their place.
        raise UnusableBaseModel(f"{prepared.folder} lacks {len(missing)} weights, {missing[0]} among them")
    model.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    model.train(mode=False)
    return model


def _tokenizer(prepared: Prepared) -> PreTrainedTokenizerFast:
    try:
        with offline():
            tokenizer = AutoTokenizer.from_pretrained(prepared.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnusableBaseModel(f"{prepared.folder}: its tokeniser cannot be opened: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UnusableBaseModel(f"{prepared.folder}: its tokeniser has no tokenizer.json form")
    return tokenizer


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not one of auto, cpu, cuda")
    return torch.device(device)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    known = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if precision != "auto" and precision not in known:
        raise ValueError(f"precision {precision!r} is not one of auto, bf16, fp32")
    return known.get(precision) or (torch.bfloat16 if _is_fast_at_bf16(device) else torch.float32)


def _is_fast_at_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("arm_bf16"))


def _template_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """What the model's files call its end of sequence, and what its chat template closes an answer with."""
    found: set[int] = set()
    for ids in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        found.update([ids] if isinstance(ids, int) else ids or ())
    try:
        found.add(ChatTemplate(tokenizer).end_of_turn())
    except UnusableTemplateError:
        return tuple(sorted(found))
    return tuple(sorted(found))
