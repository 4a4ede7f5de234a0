"""One arm of benchmarks/training.py by TRL and PEFT, in their own environment. Knows nothing of Graft.

`python -m benchmarks.training_peer PLAN.json FOUND.json`, with trl, peft, transformers, datasets and torch. It
trains on the same token ids in the same order, from the same A, at the same rate; all else is as TRL has it, but for
what the plan says.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from torch.nn.functional import cross_entropy, linear
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.training_start import head_inputs, peak_kib, started

IMPORTED_KIB = peak_kib()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(plan_file: str, found_file: str) -> None:
    """Does what the plan says, writes what was found."""
    plan = json.loads(Path(plan_file).read_text())
    torch.set_num_threads(plan["threads"])
    found = {"steps": steps, "head": head, "to_loss": to_loss}[plan["arm"]](plan)
    peak = peak_kib() - IMPORTED_KIB
    Path(found_file).write_text(json.dumps(found | {"peak_mb": peak / 1024}))


class Clock(TrainerCallback):
    """The CPU and wall seconds of each step."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """TRL's name."""
        self._began = time.process_time(), time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL's name."""
        self.cpu.append(time.process_time() - self._began[0])
        self.wall.append(time.perf_counter() - self._began[1])


class InOrder(SFTTrainer):  # type: ignore[misc]  # untyped here
    """TRL's trainer, its rows in the order given; counts the real tokens of each step and keeps its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens: list[int] = []
        self.losses: list[float] = []

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        """TRL's name."""
        mask = inputs.get("attention_mask")
        self.tokens.append(int(inputs["input_ids"].numel() if mask is None else mask.sum()))
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
        return loss


class Validations(Clock):
    """Validates every so many steps and stops where the goal is reached; no second of it counts as training."""

    def __init__(self, plan: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.plan, self.rows = plan, rows
        self.curve: list[dict[str, Any]] = []

    def on_step_end(self, *told: Any, model: Any = None, **_: Any) -> None:
        """TRL's name."""
        super().on_step_end()
        _, state, control = told
        if state.global_step % self.plan["every"]:
            return
        loss = validated(model, self.rows)
        self.curve.append({"step": state.global_step, "cpu_s": sum(self.cpu), "loss": loss})
        control.should_training_stop = loss <= self.plan.get("goal", 0.0)


def validated(model: Any, rows: list[dict[str, Any]]) -> float:
    """The mean loss of all learned tokens of these rows, one row after another."""
    total, count, was_training = 0.0, 0, model.training
    model.eval()
    with torch.inference_mode():
        for row in rows:
            ids, learned = torch.tensor(row["ids"]), torch.tensor(row["learned"])
            said = model(input_ids=ids[None]).logits[0, :-1].float()
            total += float(cross_entropy(said[learned[1:]], ids[1:][learned[1:]], reduction="sum"))
            count += int(learned[1:].sum())
    model.train(was_training)
    return total / count


def to_loss(plan: dict[str, Any]) -> dict[str, Any]:
    """Steps until the validation loss is as low as the goal, or all that were planned; the loss by step and CPU s."""
    rows = json.loads(Path(plan["rows"]).read_text())
    clock = Validations(plan, rows[-plan["held_out"] :])
    trained(plan, rows[: plan["batch"] * plan["steps"]], clock)
    return {"curve": clock.curve}


def steps(plan: dict[str, Any]) -> dict[str, Any]:
    """So many optimiser steps; the first of them warm up and are not counted."""
    clock = Clock()
    trainer = trained(plan, json.loads(Path(plan["rows"]).read_text()), clock)
    warm = plan["warm_up"]
    tokens = sum(trainer.tokens[warm:])
    return {
        "tokens": tokens,
        "cpu_us_per_token": sum(clock.cpu[warm:]) / tokens * 1e6,
        "tokens_per_s": tokens / sum(clock.wall[warm:]),
        "losses": trainer.losses,
    }


def trained(plan: dict[str, Any], rows: list[dict[str, Any]], clock: Clock) -> InOrder:
    """TRL's trainer after all its steps."""
    columns = [{"input_ids": row["ids"], "completion_mask": [int(x) for x in row["learned"]]} for row in rows]
    model = AutoModelForCausalLM.from_pretrained(plan["folder"], dtype=DTYPES[plan["precision"]], local_files_only=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=model,
            args=config(plan, folder),
            train_dataset=Dataset.from_list(columns),
            processing_class=AutoTokenizer.from_pretrained(plan["folder"], local_files_only=True),
            peft_config=peft_config(plan["method"]),
            callbacks=[clock],
        )
        start_alike(trainer.model)
        torch.set_num_threads(plan["threads"])
        trainer.train()
    return trainer


def config(plan: dict[str, Any], folder: str) -> SFTConfig:
    """TRL's defaults, but for what both sides share and what the plan adds."""
    shared: dict[str, Any] = {
        "per_device_train_batch_size": plan["batch"],
        "max_steps": plan["steps"],
        "completion_only_loss": True,
        "bf16": plan["precision"] == "bf16",
    }
    if "rate" in plan:
        shared |= {"learning_rate": plan["rate"], "lr_scheduler_type": "constant", "warmup_steps": 0}
    quiet = {"output_dir": folder, "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return SFTConfig(**shared, **quiet, **plan.get("options", {}))


def peft_config(method: dict[str, Any]) -> Any:
    """The method as PEFT names it."""
    kinds = {
        "lora": LoraConfig,
        "prefix_tuning": PrefixTuningConfig,
        "prompt_tuning": PromptTuningConfig,
        "p_tuning": PromptEncoderConfig,
    }
    told = {name: value for name, value in method.items() if name != "type"}
    return kinds[method["type"]](task_type="CAUSAL_LM", **told)


def start_alike(model: Any) -> None:
    """The A of each layer, drawn by its name; PEFT has already set B to zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                site = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
                parameter.copy_(started(site, tuple(parameter.shape)))


def head(plan: dict[str, Any]) -> dict[str, Any]:
    """The loss head alone, forward and backward: TRL's chunked one, and full logits as transformers' own loss."""
    hidden, weight, ids, learned = head_inputs(plan["tokens"], DTYPES[plan["precision"]])

    def chunked() -> None:
        x = hidden.clone().requires_grad_()
        wanted = ("log_probs", "entropy", "is_top1")
        said = ChunkedLogProbFunction.apply(x, weight, None, ids, 1.0, 8192, None, 1.0, wanted)[0]
        (-(said * learned).sum() / learned.sum()).backward()

    def full() -> None:
        x = hidden.clone().requires_grad_()
        cross_entropy(linear(x, weight).float(), torch.where(learned, ids, -100)).backward()  # type: ignore[no-untyped-call]

    best = full if plan.get("full") else chunked
    found = []
    for _ in range(2):
        clock = time.process_time()
        best()
        found.append(time.process_time() - clock)
    return {"cpu_us_per_token": min(found) / len(ids) * 1e6}


if __name__ == "__main__":
    main(*sys.argv[1:])
