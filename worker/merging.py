"""python -m worker.merging BASE ADAPTER.zip FOLDER: a downloaded adapter and its base as one model in 16 bit.

The base is opened in the precision that the adapter was trained beside, dequantised where it is NF4, and written with
its tokeniser as a plain Hugging Face folder that any program opens. Only adapters that change weights can be merged.
"""

import argparse
import json
import sys
import zipfile
from pathlib import Path

import torch

from core import merge
from core.adapter_files import read_zip
from core.base.catalogue import UnusableBaseModel, entry
from core.base.load import open_base
from core.effects import LowRank
from core.settings import Settings
from core.specs.method import BasePrecision
from worker import manifest


def merge_adapter(settings: Settings, base_model: str, adapter: Path, folder: Path) -> None:
    """Writes folder, which must not be there yet.

    Raises:
        ValueError: the adapter is damaged, not of this base, or has no weights to merge.
        UnusableBaseModel: the base model cannot be opened.

    """
    if folder.exists():
        raise ValueError(f"{folder} is there already: name a folder that is not")
    effect = read_zip(adapter)
    if not isinstance(effect, LowRank):
        raise ValueError("virtual tokens are no part of any weight: only LoRA, QLoRA and AdaLoRA can be merged")  # noqa: TRY004 - the file is wrong, not a caller
    base = open_base(
        entry(settings.base_models, base_model),
        cache_dir=settings.cache_dir,
        device="cpu",
        precision="fp32",
        base_precision=trained_beside(adapter),
    )
    merge.write(base.model, effect, folder, dtype=torch.bfloat16)
    base.tokenizer.save_pretrained(folder)


def trained_beside(adapter: Path) -> BasePrecision:
    """What the adapter's manifest says; 16 bit where it has none."""
    with zipfile.ZipFile(adapter) as archive:
        if manifest.NAME not in archive.namelist():
            return "bf16"
        said = json.loads(archive.read(manifest.NAME)).get("base_precision")
    return "nf4" if said == "nf4" else "bf16"


def main() -> int:
    """The exit status: 0, or 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m worker.merging", description=__doc__)
    parser.add_argument("base", help="the base model's id in GRAFT_BASE_MODELS")
    parser.add_argument("adapter", type=Path, help="a zip as GET /v1/adapters/{adapter}/download gives it")
    parser.add_argument("folder", type=Path, help="where the merged model is written")
    asked = parser.parse_args()
    try:
        merge_adapter(Settings(), asked.base, asked.adapter, asked.folder)
    except (ValueError, OSError, zipfile.BadZipFile, UnusableBaseModel) as error:
        print(f"graft: {error}", file=sys.stderr)  # noqa: T201 - a terminal's own way to be told
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
