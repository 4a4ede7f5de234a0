"""Adapters of every method made on the spot, each a PEFT folder, so that ours and stock PEFT serve the same files.

They are not trained: what a method starts from is moved at random, so that each says something of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from core import peft_files
from core.base.facts import BaseFacts
from core.methods import METHODS
from core.specs.method import MethodSpec

SPECS: TypeAdapter[MethodSpec] = TypeAdapter(MethodSpec)
MOVED = 0.02  # standard deviation of what is added to every parameter
MOVED_SCALES = 2.0  # of what is added to AdaLoRA's Λ, which starts at zero between two small factors

Told = Mapping[str, Any]  # a method as a job would name it


def sixteen() -> list[Told]:
    """LoRA on every linear layer, ranks 8 to 16."""
    return [{"type": "lora", "r": 8 + n % 9, "lora_alpha": 32.0} for n in range(16)]


def six_methods(count: int) -> list[Told]:
    """So many in the shares of serving.md 6.3: of 64, 24 LoRA, 8 QLoRA, 10 AdaLoRA, 8 prefixes, 8 prompts, 6 P-tuned.

    The methods take turns, so that any run of neighbours holds all; virtual tokens are 8 to 20.
    """
    shares = {"lora": 24, "qlora": 8, "adalora": 10, "prefix_tuning": 8, "prompt_tuning": 8, "p_tuning": 6}
    due = [((n + 0.5) / share, kind) for kind, share in shares.items() for n in range(share)]
    return [_of_kind(kind, number) for number, (_, kind) in enumerate(sorted(due)[:count])]


def _of_kind(kind: str, number: int) -> Told:
    match kind:
        case "lora" | "qlora":
            return {"type": kind, "r": (4, 8, 16, 32)[number % 4], "use_rslora": number % 5 == 0}
        case "adalora":
            return {"type": kind, "init_r": 12, "target_r": 8, "export_as": "adalora"}
        case "prefix_tuning":
            return {"type": kind, "num_virtual_tokens": 8 + number % 13, "parametrization": "kv"}
        case "p_tuning":  # all in front, which PEFT's own P_TUNING can say
            return {"type": kind, "template": f"{{v:{8 + number % 13}}}{{input}}{{target}}"}
    return {"type": kind, "num_virtual_tokens": 8 + number % 13}


def write_all(adapters: Sequence[Told], facts: BaseFacts, folder: Path, base_model: str) -> list[Path]:
    """Each adapter's PEFT folder, in order."""
    folders = []
    for number, told in enumerate(adapters):
        spec = SPECS.validate_python(dict(told))
        generator = torch.Generator().manual_seed(number)
        method = METHODS[spec.type](spec, facts, generator=generator)
        with torch.no_grad():
            for parameter in method.parameters():
                size = MOVED_SCALES if parameter.shape[-1] == 1 else MOVED
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        folders.append(folder / f"adapter-{number}")
        peft_files.write(method, folders[-1], base_model)
    return folders
