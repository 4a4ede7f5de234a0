"""Which folders of model files are opened: weights in safetensors, an architecture we know, nothing that runs code.

Each refusal stands for a way in which opening a model has run a stranger's code (reliability.md section 5.1).
"""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any, Final

from core.base.catalogue import UnusableBaseModel

ARCHITECTURES: Final = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_CONFIGS: Final = ("config.json", "generation_config.json", "tokenizer_config.json")
_REFUSED_KEYS: Final = {
    "auto_map": "names Python code of its own",
    "custom_pipelines": "names Python code of its own",
    "attn_implementation": "chooses code to run as attention",
    "_attn_implementation": "chooses code to run as attention",
    "_attn_implementation_internal": "chooses code to run as attention",
    "experts_implementation": "chooses code to run as experts",
    "_experts_implementation": "chooses code to run as experts",
    "_experts_implementation_internal": "chooses code to run as experts",
    "quantization_config": "asks for a quantiser; give unquantised weights or a GGUF file",
    "transformers_weights": "names a weights file of its own",
}
_PICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MAX_CONFIG_BYTES: Final = 16 << 20


def refuse_unsafe(folder: Path) -> None:
    """Looks at a folder's names and JSON files; opens no weights.

    Raises:
        UnusableBaseModel: it is not to be opened, and why.

    """
    weights_of(folder)
    for name in _CONFIGS:
        if (folder / name).exists():
            _refuse_keys(folder / name, _json(folder / name))
    config = _json(folder / "config.json")
    refuse_architecture(folder, config.get("model_type"), config.get("architectures"))


def refuse_architecture(source: Path, model_type: object, architectures: object = None) -> None:
    """Only the families whose forward the tests cover are opened. Raises UnusableBaseModel."""
    expected = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if expected is None or architectures not in (None, [expected]):
        raise UnusableBaseModel(
            f"{source}: architecture {architectures or model_type!r} is not one of {', '.join(ARCHITECTURES.values())}"
        )


def weights_of(folder: Path) -> list[Path]:
    """A folder's safetensors files, sorted by name. Raises UnusableBaseModel where there are none."""
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        return weights
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    found = f"only {', '.join(pickled[:3])}, which can run code when opened" if pickled else "no weights"
    raise UnusableBaseModel(f"{folder} holds {found}; .safetensors files are expected")


def weights_sha256(weights: list[Path], notes: Path) -> str:
    """The sha256 of one file; of several, that of their sha256s in order.

    Hashing gigabytes takes longer than mapping them, so what was found is noted in the folder notes, under the file's
    path, size and time of change.
    """
    sums = [_noted_sha256(path, notes) for path in weights]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _noted_sha256(path: Path, notes: Path) -> str:
    real = path.resolve()
    status = real.stat()
    key = hashlib.sha256(f"{real}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:32]
    note = notes / f"{key}.sha256"
    if note.exists():
        return note.read_text()
    with real.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    notes.mkdir(parents=True, exist_ok=True)
    fresh = note.with_suffix(f".{secrets.token_hex(4)}")
    fresh.write_text(found)
    fresh.replace(note)
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UnusableBaseModel(f"{path.parent} has no {path.name}")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise UnusableBaseModel(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnusableBaseModel(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnusableBaseModel(f"{path} is not a JSON object")
    return value


def _refuse_keys(path: Path, value: object) -> None:
    """Looks at every depth: a nested text_config is read by the same code as the outer one."""
    if isinstance(value, dict):
        for key, reason in _REFUSED_KEYS.items():
            if value.get(key) is not None:
                raise UnusableBaseModel(f"{path}: {key} {reason}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_keys(path, inner)
