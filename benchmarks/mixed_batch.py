"""One batch of eight rows by six methods, served; each row against itself alone and against stock PEFT run alone.

Starts a service in fp32, trains seven small adapters by REST on the 16-bit base and seven on the NF4 base, asks eight
rows of each base at once and one by one, downloads the adapters, and has stock PEFT answer the same prompts (on NF4,
with the base's dequantised weights). Ends with 1 unless all texts agree. Writes benchmarks/results/mixed_batch.json.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from openai import OpenAI
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.service import console, follow, progress, service
from core.adapter_files import read_zip
from core.base.catalogue import entry
from core.base.facts import linears_of, site_of
from core.base.load import OpenBase, open_base
from core.base.nf4 import dense_weight
from core.data.tokens import encode_prompt
from core.effects import KVPrefix, SoftPrompt, members_of
from core.model import RoutedModel, Rows
from core.records import presences
from core.records.database import Database
from core.routing import Routing
from core.settings import Settings
from core.specs.generation import ChatMessage
from core.specs.method import BasePrecision

RESULTS = Path("benchmarks/results/mixed_batch.json")
STOCK = Path(__file__).with_name("stock_peft.py")
SAMPLE = Path("core/data/samples/tickets.train.jsonl")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 8},
    "qlora": {"type": "qlora", "r": 16},
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 4},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 8},
    "prompt-12": {"type": "prompt_tuning", "num_virtual_tokens": 12},
    "prompt-5": {"type": "prompt_tuning", "num_virtual_tokens": 5},
    "p-tuning": {"type": "p_tuning", "template": "{v:4} Ticket: {input}{v:3}{target}"},
}
NEW_TOKENS = 16


@dataclass(frozen=True)
class Answers:
    """What was asked, and what the rows said in one batch and one by one."""

    words: list[str]
    together: list[str]
    alone: list[str]


@dataclass(frozen=True)
class Row:
    """One row of a batch, and what was found."""

    base_precision: str
    name: str
    model: str
    peft_type: str
    text: str
    equals_alone: bool
    equals_stock: bool
    logit_difference: float  # greatest, ours beside stock PEFT's, after the prompt


def main() -> int:
    """Train, serve, compare, print and keep."""
    options = arguments()
    os.environ.setdefault("GRAFT_PRECISION", "fp32")
    settings = Settings()
    found: list[Row] = []
    steps: dict[str, dict[str, int]] = {}
    with service(settings) as address:
        key = (settings.data_dir / "admin.key").read_text().strip()
        client = OpenAI(api_key=key, base_url=f"{address}/v1", timeout=900.0)
        models = {p: trained(client, settings.default_base_model, p) for p in options.precisions}
        for precision, named in models.items():
            rows, counted = batch_of(client, settings, precision, named, options.stock_python)
            found += rows
            steps[precision] = counted
    show(found)
    RESULTS.parent.mkdir(exist_ok=True)
    figures = {"cores": os.cpu_count(), "engine_steps": steps, "rows": [asdict(row) for row in found]}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    is_mixed = all(s["together"] < s["alone"] / 2 for s in steps.values())
    return 0 if is_mixed and all(row.equals_alone and row.equals_stock for row in found) else 1


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock-python", default=sys.executable, help="of an environment with torch and peft")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "nf4"], default=["bf16", "nf4"])
    return parser.parse_args()


def trained(client: OpenAI, base: str, precision: str) -> dict[str, str]:
    """A small adapter of each kind on this base: name -> model."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:24]
    file = client.files.create(file=("tickets.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    with progress() as bar:
        jobs = {}
        for name, peft in ADAPTERS.items():
            method = {"type": "lora", "r": 16} if peft["type"] == "qlora" and precision != "nf4" else peft
            jobs[name] = client.fine_tuning.jobs.create(
                model=base,
                training_file=file.id,
                suffix=f"{name}-{precision}",
                seed=11,
                hyperparameters={"n_epochs": 2},
                extra_body={"peft": {"base_precision": precision, **method}},
            )
        lines_of = {name: bar.add_task(f"{name} on {precision}", total=None, says="queued") for name in jobs}
        return {name: str(follow(client, job, bar, lines_of[name]).fine_tuned_model) for name, job in jobs.items()}


def batch_of(
    client: OpenAI, settings: Settings, precision: BasePrecision, models: dict[str, str], stock_python: str
) -> tuple[list[Row], dict[str, int]]:
    """Eight rows at once, then alone, then by stock PEFT."""
    base = settings.default_base_model
    asked = {"base": base if precision == "bf16" else f"{base}@{precision}", **models}
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[40:48]
    words = [str(json.loads(line)["messages"][-2]["content"]) for line in lines]

    def ask(pair: tuple[str, str]) -> str:
        model, said = pair
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": said}], temperature=0, max_tokens=NEW_TOKENS
        )
        return answer.choices[0].message.content or ""

    pairs = list(zip(asked.values(), words, strict=True))
    for pair in pairs:
        ask(pair)  # so that every adapter is in memory when all are asked at once
    first = engine_steps(settings, precision)
    with ThreadPoolExecutor(len(pairs)) as pool:
        together = list(pool.map(ask, pairs))
    second = engine_steps(settings, precision)
    answers = Answers(words, together, [ask(pair) for pair in pairs])
    third = engine_steps(settings, precision)
    rows = compared(client, settings, precision, asked, answers, stock_python=stock_python)
    return rows, {"together": second - first, "alone": third - second}


def engine_steps(settings: Settings, precision: str) -> int:
    """How many steps the engine of this precision has made."""
    database = Database(settings.database)
    with database.session() as session:
        engines = presences.alive(session, "engine")
        url = next(e.url for e in engines if e.is_ready and e.details.get("base_precision", "bf16") == precision)
    database.close()
    status = httpx.get(f"{url}/status", headers={"authorization": f"Bearer {settings.engine_token}"})
    return int(status.json()["steps"])


def compared(
    client: OpenAI,
    settings: Settings,
    precision: BasePrecision,
    asked: dict[str, str],
    answers: Answers,
    *,
    stock_python: str,
) -> list[Row]:
    """The rows with what stock PEFT says to the same prompts."""
    base = entry(settings.base_models, settings.default_base_model)
    opened = open_base(base, cache_dir=settings.cache_dir, device="cpu", precision="fp32", base_precision=precision)
    prompts = [encode_prompt([ChatMessage(role="user", content=words)], opened.tokenizer) for words in answers.words]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        zips = {name: download(client, model, folder / name) for name, model in asked.items() if name != "base"}
        stock = answered_by_stock(opened, folder, request_of(list(asked), prompts, zips, opened), stock_python)
        model = RoutedModel(opened.model)
        rows = []
        for number, (name, model_name) in enumerate(asked.items()):
            said = opened.tokenizer.decode(stock[number]["ids"], skip_special_tokens=True)
            mine = logits_of(model, zips.get(name), prompts[number])
            row = Row(
                base_precision=precision,
                name=name,
                model=model_name,
                peft_type=config_of(zips[name])["peft_type"] if name in zips else "",
                text=answers.together[number],
                equals_alone=answers.together[number] == answers.alone[number],
                equals_stock=answers.together[number] == said,
                logit_difference=greatest_difference(mine, torch.tensor(stock[number]["logits"]), zips.get(name)),
            )
            rows.append(row)
    return rows


def greatest_difference(mine: torch.Tensor, stock: torch.Tensor, zip_path: Path | None) -> float:
    """Of logits [V]. Those of reserved ids are left out: stock PEFT replaces them where head and table are tied."""
    difference = (mine - stock).abs()
    difference[list(config_of(zip_path).get("token_indices") or ()) if zip_path else []] = 0
    return float(difference.max())


def request_of(
    names: list[str], prompts: list[list[int]], zips: dict[str, Path], opened: OpenBase
) -> list[dict[str, Any]]:
    """What stock PEFT is asked."""
    configs = [config_of(zip_path) for zip_path in zips.values()]
    reserved = sorted({index for config in configs for index in config.get("token_indices") or ()})
    return [
        {
            "adapter": str(zips[name].parent / "adapter") if name in zips else None,
            "ids": ids,
            "max_tokens": NEW_TOKENS,
            "stop_ids": list(opened.stop_ids),
            "reserved": reserved,  # no answer holds an id that some adapter replaces
        }
        for name, ids in zip(names, prompts, strict=True)
    ]


def config_of(zip_path: Path) -> dict[str, Any]:
    """adapter_config.json."""
    config: dict[str, Any] = json.loads((zip_path.parent / "adapter/adapter_config.json").read_text())
    return config


def download(client: OpenAI, model: str, folder: Path) -> Path:
    """The adapter's zip, and the same unpacked beside it."""
    content = client.get(f"/adapters/{model}/download", cast_to=httpx.Response).content
    folder.mkdir()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder / "adapter")
    path = folder / "adapter.zip"
    path.write_bytes(content)
    return path


def answered_by_stock(
    opened: OpenBase, folder: Path, request: list[dict[str, Any]], stock_python: str
) -> list[dict[str, Any]]:
    """Another process, which imports nothing of ours."""
    base = folder / "base"
    save_plain(opened, base)
    (folder / "request.json").write_text(json.dumps(request))
    command = [stock_python, str(STOCK), str(base), str(folder / "request.json"), str(folder / "answer.json")]
    began = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    console.print(f"Stock PEFT answered {len(request)} rows in {time.monotonic() - began:.0f} s")
    answers: list[dict[str, Any]] = json.loads((folder / "answer.json").read_text())
    return answers


def save_plain(opened: OpenBase, folder: Path) -> None:
    """The base as any program can open it: in fp32, NF4 weights dequantised."""
    tensors = {name: t for name, t in opened.model.state_dict().items() if name.endswith(("weight", "bias"))}
    for name, module in linears_of(opened.model).items():
        weight = dense_weight(module)
        tensors[f"{name}.weight"] = weight.T if site_of(name, module).is_conv1d else weight
    kept = {name: t.detach().float().contiguous().clone() for name, t in tensors.items() if t.is_floating_point()}
    if opened.model.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    opened.model.config.save_pretrained(folder)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def logits_of(model: RoutedModel, zip_path: Path | None, prompt: list[int]) -> torch.Tensor:
    """[V] after the prompt, by our own forward."""
    effect = None if zip_path is None else members_of(read_zip(zip_path))[0]
    ids = effect.layout.around(prompt) if isinstance(effect, SoftPrompt) else prompt
    first = effect.keys.shape[1] if isinstance(effect, KVPrefix) else 0
    with torch.inference_mode(), model.wearing(Routing.of_rows([effect])):
        hidden = model(Rows.of([ids], first_positions=[first]))
        return model.logits(hidden[-1:])[0].float()


def show(rows: list[Row]) -> None:
    """The table."""
    table = Table(title="Eight rows of one batch, each beside itself alone and beside stock PEFT (fp32, greedy)")
    for head in ("base", "row", "file", "says", "= alone", "= stock PEFT", "greatest logit difference"):
        table.add_column(head)
    for row in rows:
        table.add_row(
            row.base_precision,
            row.name,
            row.peft_type,
            row.text[:32].replace("\n", " "),
            "yes" if row.equals_alone else "NO",
            "yes" if row.equals_stock else "NO",
            f"{row.logit_difference:.1e}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
