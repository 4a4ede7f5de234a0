"""Where a base model lies ready to be opened: a folder of safetensors. A GGUF file is converted into one, once.

Converted weights are kept in bf16 whatever the machine computes in: half the bytes of fp32, mapped and shared between
processes as they lie, and the same numbers on every machine, so that an adapter learned in fp32 on one meets the same
base in bf16 on another. The rounding (2^-9) is far below that of the 4 to 8 bits which GGUF files hold.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import torch
from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from transformers.utils.quantization_config import GgufConfig

from core.base.catalogue import HubID, UnusableBaseModel, parse, source_file
from core.base.folder import refuse_architecture, refuse_unsafe, weights_of, weights_sha256
from core.specs.assignment import BaseModelEntry

_FORM = 1  # of converted folders; raised when conversion changes what it writes
_WANTED_FROM_HUB = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class Prepared:
    """A folder that passed refuse_unsafe. revision: the sha256 of the weights as they were given."""

    folder: Path
    revision: str


def prepare(base: BaseModelEntry, cache_dir: Path) -> Prepared:
    """Finds a base model's folder; downloads a hub entry, converts a GGUF file where that was not done before.

    Raises:
        UnusableBaseModel: missing, unreachable, or of a kind that is refused.

    """
    place = parse(base.source)
    source = _download(place, cache_dir / "hub") if isinstance(place, HubID) else source_file(base)
    bases = cache_dir / "bases"
    if source.is_dir():
        refuse_unsafe(source)
        return Prepared(source, weights_sha256(weights_of(source), bases / "sums"))
    revision = weights_sha256([source], bases / "sums")
    return Prepared(_converted(source, bases / f"{base.id}-{revision[:16]}-{_FORM}"), revision)


@contextmanager
def offline() -> Iterator[None]:
    """Keeps the hub's client from any request: what is opened inside lies on this machine."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _converted(source: Path, target: Path) -> Path:
    """The folder with a GGUF file's converted form. Of several processes at once one converts and the others wait.

    A folder bears its name only once it is whole, so one that was left half-written is never read.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_dir():
            return target
        for left in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(left)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        part.mkdir()
        _convert(source, part)
        refuse_unsafe(part)
        for path in (*part.iterdir(), part):
            _sync(path)
        part.rename(target)
        _sync(target.parent)
    return target


def _convert(source: Path, part: Path) -> None:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    given = {"gguf_file": source.name, "local_files_only": True}
    try:
        with offline(), _reading_once():
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **given)
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **given
            )
    except Exception as error:
        # The library's readers of strange files raise what they happen to run into.
        raise UnusableBaseModel(f"{source} cannot be converted: {error}") from error
    refuse_architecture(source, model.config.model_type)
    tokenizer.save_pretrained(part)
    model.save_pretrained(part)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Lets the library find again what it read of a GGUF file, for half of a conversion's time.

    By itself it reads the header three times over and makes the same table of names anew for every module.
    """
    library: Any = gguf
    reader, names = library.GGUFReader, library.get_tensor_name_map
    library.GGUFReader, library.get_tensor_name_map = lru_cache(maxsize=1)(reader), lru_cache(maxsize=1)(names)
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = reader, names


def _download(hub: HubID, cache_dir: Path) -> Path:
    try:
        found = snapshot_download(
            hub.name, revision=hub.revision, cache_dir=cache_dir, allow_patterns=_WANTED_FROM_HUB, etag_timeout=30
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UnusableBaseModel(
            f"hub model {hub.name}@{hub.revision} is neither in the cache nor can it be downloaded: {error}"
        ) from error
    return Path(found)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
